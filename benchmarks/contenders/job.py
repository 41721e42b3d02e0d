"""A contender's job, and its result: two small JSON files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BATCH = 32
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Job:
    """One simulation to run."""

    model: str
    """Folder of the encoder."""
    num_clients: int
    num_rounds: int
    max_length: int
    texts: str
    """CSV of the texts all clients hold together, and …"""
    test_texts: str
    """… of those to test on."""
    token_ids: str
    """The same training texts as JSON: input_ids (N, max_length), labels (N,)."""
    has_steps: bool
    """False: nobody trains, what remains is what the framework itself costs."""
    device: str
    folder: str
    """Where to work."""
    threads: int = 1
    processes: int = 1
    overrides: tuple[str, ...] = ()
    """Of Wardround's settings."""

    @property
    def result_file(self) -> Path:
        """Return the path of the file with the contender's times."""
        return Path(self.folder) / "result.json"

    def write(self) -> Path:
        """Write the job as a file, for a contender's command line."""
        file = Path(self.folder) / "job.json"
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file


def read_job(arguments: Sequence[str] | None = None) -> Job:
    """Return the job that the command line names."""
    (file,) = sys.argv[1:] if arguments is None else arguments
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    return Job(**content | {"overrides": tuple(content["overrides"])})


class Clock:
    """Notes when the first round began and when each one ended."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = 0.0
        self._ends: list[tuple[int, float]] = []

    def begin(self, at: float | None = None) -> None:
        """Note that the first round begins now."""
        self._began = self._began or at or time.time()

    def end(self, number: int, at: float | None = None) -> None:
        """Note that round `number` has ended now."""
        self._ends.append((number, at or time.time()))

    def write(self) -> None:
        """Write the result file."""
        content = {"began": self._began, "ends": self._ends}
        self._job.result_file.write_text(json.dumps(content), encoding="utf-8")
