"""Run one contender of the simulation benchmark, and read its notes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.job import Job
from benchmarks.inputs import LABELS, write_texts
from benchmarks.memory import PeakMemory, with_descendants

_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


class Missing(RuntimeError):
    """A contender is not installed, or did not come to its end. The text says which."""


@dataclass(frozen=True)
class Contender:
    """A contender, which is a row of the table."""

    name: str
    module: str
    """Below `benchmarks.contenders`."""
    threads: int = 1
    processes: int = 1
    overrides: tuple[str, ...] = ()
    needs: str = ""
    """A package that has to be there."""
    package: str = ""
    """How pip calls it."""
    models: tuple[str, ...] = ()
    """Sizes it is measured with; all if empty."""


@dataclass(frozen=True)
class Outcome:
    """The costs of one run."""

    start_seconds: float
    """From the command to the beginning of the first round."""
    first_seconds: float
    round_seconds: float
    """Mean of the rounds after the first."""
    peak_bytes: int


@dataclass(frozen=True)
class Texts:
    """The texts for all simulations of a model, as CSV and as token ids."""

    train: Path
    test: Path
    token_ids: Path

    @classmethod
    def write(cls, folder: Path, num_texts: int, length: int) -> Texts:
        """Write `num_texts` texts of exactly `length` tokens."""
        random = np.random.default_rng(1)
        content = {
            "input_ids": random.integers(5, 1000, (num_texts, length)).tolist(),
            "labels": (np.arange(num_texts) % len(LABELS)).tolist(),
        }
        token_ids = folder / "token_ids.json"
        token_ids.write_text(json.dumps(content), encoding="utf-8")
        return cls(
            write_texts(folder / "train.csv", np.full(num_texts, length)),
            write_texts(folder / "test.csv", np.full(2, length), seed=2),
            token_ids,
        )


def run(contender: Contender, job: Job) -> Outcome:
    """Make one run, in its own processes.

    Raises:
        Missing: it is not installed, or failed.
    """
    if contender.needs and importlib.util.find_spec(contender.needs) is None:
        raise Missing(
            f"not installed: {contender.package}; no row for {contender.name}."
        )
    log = Path(job.folder) / "log.txt"
    words = [
        sys.executable,
        "-m",
        f"benchmarks.contenders.{contender.module}",
        str(job.write()),
    ]
    with log.open("wb") as file:
        started = time.time()
        process = subprocess.Popen(
            words, env=os.environ | _QUIET, stdout=file, stderr=subprocess.STDOUT
        )
        groups = {"all": lambda: with_descendants([process.pid])}
        with PeakMemory(groups, seconds=0.2) as memory:
            code = process.wait()
    if code != 0 or not job.result_file.exists():
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
        raise Missing(
            f"{contender.name} failed with exit code {code}: {' / '.join(last)[:300]}"
        )
    return outcome(
        json.loads(job.result_file.read_text(encoding="utf-8")),
        started,
        memory.peaks["all"],
    )


def outcome(result: Mapping[str, Any], started: float, peak_bytes: int) -> Outcome:
    """Return the costs from a contender's `began` and `ends` (round, time)."""
    began, ends = float(result["began"]), result["ends"]
    (first, first_end), (last, last_end) = ends[0], ends[-1]
    later = (
        (last_end - first_end) / (last - first) if last > first else first_end - began
    )
    return Outcome(began - started, first_end - began, later, peak_bytes)
