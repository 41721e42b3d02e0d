"""Runs that a person starts, and the parts of their history that tests compare."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.door import changed
from wardround.server.record import RoundRecord
from wardround.server.run_folder import RunFolder

COMMAND = [sys.executable, "-m", "wardround.server.cli"]


def hashes(run_dir: Path) -> list[str]:
    """Return `model_sha256` of each round."""
    return [line["model_sha256"] for line in history(run_dir)]


def start(verb: str, overrides: list[str]) -> subprocess.Popen[str]:
    """Start the command line in a new process, without its output."""
    return subprocess.Popen(
        [*COMMAND, verb, *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


def wait_for_round(process: subprocess.Popen[str], run_dir: Path, number: int) -> None:
    """Wait until the run has written the line of this round."""
    deadline = time.monotonic() + 120
    while len(history(run_dir)) <= number:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, f"no round {number} within two minutes"
        time.sleep(0.002)


def with_keys(overrides: list[str], **keys: object) -> list[str]:
    """Return the overrides with other values of these keys."""
    return changed(overrides, *(f"{key}={value}" for key, value in keys.items()))


class PowerCut(Exception):
    """The machine stops at a chosen moment."""


def measured(run_dir: Path) -> list[dict[str, Any]]:
    """Return the history lines without the fields that depend on the clock."""
    lines = history(run_dir)
    for line in lines:
        del line["seconds"]
        for client in line["clients"]:
            del client["seconds"]
    return lines


def history(run_dir: Path | str) -> list[dict[str, Any]]:
    """Return the records of a run's whole rounds, as plain keys and values."""
    return [record.model_dump() for record in RunFolder(Path(run_dir)).history()]


def bare_record(
    number: int, version: str = "", accuracy: float | None = None
) -> RoundRecord:
    """Return a record with only these values."""
    test = None if accuracy is None else {"accuracy": accuracy}
    return RoundRecord.read(
        json.dumps({"round": number, "model_sha256": version, "test": test})
    )
