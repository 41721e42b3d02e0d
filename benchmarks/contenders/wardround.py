"""Wardround by its command line. `has_steps=False` leaves the training steps out."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.contenders.job import BATCH, LEARNING_RATE, Clock, Job, read_job


def leave_out_training() -> None:
    """Make every client return the tensors that it received, here and in this process's workers."""
    from wardround.client import round as local_round
    from wardround.server.engines import pool

    def train_nothing(*_: Any) -> float:
        return 0.0

    local_round.__dict__["train_epochs"] = train_nothing
    pool.__dict__["FORK_SERVER"] = "benchmarks.contenders.wardround_fork_server"


def overrides(job: Job) -> list[str]:
    """Return the overrides for `wardround simulate`."""
    return [
        *("model=hf", f"model.name={job.model}", "model.label=benchmark", "data=files"),
        *(
            f"data.path={job.texts}",
            f"data.test_path={job.test_texts}",
            "train.local_epochs=1",
        ),
        *(f"train.batch_size={BATCH}", f"train.max_length={job.max_length}"),
        *(f"train.learning_rate={LEARNING_RATE}", f"num_clients={job.num_clients}"),
        *(
            f"num_rounds={job.num_rounds}",
            f"device={job.device}",
            f"threads={job.threads}",
        ),
        *(f"run_dir={job.folder}/run", *job.overrides),
    ]


class Follower(threading.Thread):
    """Notes the times of files in the run folder: live.json as round 1 begins, then checkpoints."""

    def __init__(self, run: Path, clock: Clock) -> None:
        super().__init__(daemon=True)
        self._run, self._clock = run, clock
        self._seen: set[int] = {0}
        self._has_begun = False
        self._is_over = threading.Event()

    def run(self) -> None:
        """Look until the stop, and once more after it."""
        while not self._is_over.wait(0.02):
            self._look()
        self._look()

    def stop(self) -> None:
        """Stop, and return after everything is noted."""
        self._is_over.set()
        self.join()

    def _look(self) -> None:
        live = self._run / "live.json"
        if not self._has_begun and live.exists():
            self._has_begun = True
            self._clock.begin(live.stat().st_mtime)
        for folder in sorted((self._run / "checkpoint").glob("round-*")):
            number = int(folder.name.removeprefix("round-"))
            if number not in self._seen:
                self._seen.add(number)
                self._clock.end(number, (folder / "record.json").stat().st_mtime)


def main() -> None:
    """Run the command line."""
    job = read_job()
    if not job.has_steps:
        leave_out_training()
    clock = Clock(job)
    follower = Follower(Path(job.folder) / "run", clock)
    follower.start()
    from wardround.server.cli import main as wardround

    sys.argv = ["wardround", "simulate", *overrides(job)]
    try:
        wardround()
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    follower.stop()
    clock.write()


if __name__ == "__main__":
    main()
