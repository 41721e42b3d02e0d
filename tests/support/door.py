"""The command line in the process of the test: exit code, output, files."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from wardround.common.data.corpus import forget_corpora
from wardround.server.cli import main


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def wardround(*arguments: str) -> CommandResult:
    """Run `wardround ARGUMENTS` as a new process would, without texts in memory."""
    out, err = io.StringIO(), io.StringIO()
    kinds = (signal.SIGTERM, signal.SIGHUP)
    handlers = {kind: signal.getsignal(kind) for kind in kinds}
    umask = os.umask(0o022)
    forget_corpora()
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            patch.setattr(sys, "argv", ["wardround", *arguments])
            with pytest.raises(SystemExit) as end:
                main()
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        os.umask(umask)
    assert isinstance(end.value.code, int)
    return CommandResult(end.value.code, out.getvalue(), err.getvalue())


def tiny(model: Path, train: Path, test: Path, run_dir: Path) -> list[str]:
    """Return overrides for a run of less than a second: two clients, one round, a tiny model."""
    return [
        "model=hf",
        f"model.name={model}",
        "data=files",
        f"data.path={train}",
        f"data.test_path={test}",
        f"run_dir={run_dir}",
        "num_clients=2",
        "num_rounds=1",
        "device=cpu",
        "threads=1",
        "train.batch_size=8",
        "train.local_epochs=1",
        "train.max_length=16",
        "train.learning_rate=0.5",
    ]


def changed(overrides: Sequence[str], *more: str) -> list[str]:
    """Return `overrides` with those in `more`, which replace the ones with the same key."""
    keys = {text.split("=")[0] for text in more}
    return [*(text for text in overrides if text.split("=")[0] not in keys), *more]


def run_dir_of(overrides: Sequence[str]) -> Path:
    """Return the run folder in these overrides."""
    (found,) = (
        text.removeprefix("run_dir=")
        for text in overrides
        if text.startswith("run_dir=")
    )
    return Path(found)


def for_sweep(overrides: Sequence[str]) -> list[str]:
    """Return `overrides` without `num_rounds`, which a sweep takes from its data set."""
    return [text for text in overrides if not text.startswith("num_rounds=")]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`, with its bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
