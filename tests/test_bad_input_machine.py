"""Faults of the machine: full disk, folder in use, no hub, numbers that are not finite."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import resource
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.processes import wait_for
from tests.support.door import changed, contents, for_sweep, tiny, wardround
from tests.support.runs import hashes, history
from wardround.common.data import token_cache
from wardround.common.errors import DIVERGED
from wardround.server.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def overrides(
    tiny_model: Path, tiny_texts: Path, tiny_test_texts: Path, tmp_path: Path
) -> list[str]:
    """Return the overrides of a run of two rounds that is not started."""
    run = tiny(tiny_model, tiny_texts, tiny_test_texts, tmp_path / "run")
    return changed(run, "num_rounds=2")


def last_checkpoint(folder: Path) -> int:
    """Return the round of the newest checkpoint. Check that it loads and is finite."""
    checkpoint = RunFolder(folder).load_checkpoint()
    assert checkpoint is not None
    assert all(
        bool(torch.isfinite(tensor).all()) for tensor in checkpoint.tensors.values()
    )
    newest = max(path.name for path in (folder / "checkpoint").glob("round-*"))
    return int(newest.removeprefix("round-"))


# --- full disk ------------------------------------------------------------------------


@contextmanager
def files_end_at(num_bytes: int) -> Iterator[None]:
    """Keep every file of this process below `num_bytes`, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A checkpoint of the tiny model has 27 KB, settings.json 1.7 KB.
CHECKPOINT_DOES_NOT_FIT, NOTHING_FITS = 20_000, 10


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_model: Path,
    tiny_texts: Path,
    tiny_test_texts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[str]:
    """Return the hashes of a run of five rounds without a fault."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    calm = changed(
        tiny(tiny_model, tiny_texts, tiny_test_texts, folder), "num_rounds=5"
    )
    assert wardround("simulate", *calm).code == 0
    return hashes(folder)


def test_a_full_disk_keeps_the_last_whole_round(
    overrides: list[str], uninterrupted: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert wardround("simulate", *overrides).code == 0
    longer = changed(overrides, "num_rounds=5")
    with files_end_at(CHECKPOINT_DOES_NOT_FIT):
        said = wardround("simulate", *longer)
    assert said.code == 1, said
    assert str(run / "checkpoint" / "round-000003") in said.err
    assert "free some space" in said.err
    status = RunFolder(run).status()
    assert status["state"] == "failed"
    assert str(run / "checkpoint" / "round-000003") in status["reason"]
    assert last_checkpoint(run) == 2
    assert list((run / "checkpoint").glob(".*")) == []
    # With free space the same command continues, and the result is the same.
    assert wardround("simulate", *longer).code == 0
    assert hashes(run) == uninterrupted
    assert RunFolder(run).status()["state"] == "finished"


def test_a_history_line_that_did_not_fit_is_written_again(
    overrides: list[str], uninterrupted: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert wardround("simulate", *overrides).code == 0
    folder, history = RunFolder(run), run / "history.jsonl"
    with (
        files_end_at(history.stat().st_size + 50),
        pytest.raises(OSError) as caught,  # noqa: PT011 - the number is checked below
    ):
        folder.append_history(folder.history()[-1].model_copy(update={"round": 3}))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(history)
    assert not history.read_text().endswith("\n")
    assert wardround("simulate", *changed(overrides, "num_rounds=5")).code == 0
    assert hashes(run) == uninterrupted


def test_a_run_continues_after_a_disk_that_was_full_before_round_0(
    overrides: list[str], uninterrupted: list[str], tmp_path: Path
) -> None:
    longer = changed(overrides, "num_rounds=5")
    with files_end_at(CHECKPOINT_DOES_NOT_FIT):
        assert wardround("simulate", *longer).code == 1
    assert RunFolder(tmp_path / "run").status()["state"] == "failed"
    assert RunFolder(tmp_path / "run").load_checkpoint() is None
    assert wardround("simulate", *longer).code == 0
    assert hashes(tmp_path / "run") == uninterrupted


def test_a_disk_without_any_space_changes_no_file(
    overrides: list[str], tmp_path: Path
) -> None:
    assert wardround("simulate", *overrides).code == 0
    before = contents(tmp_path / "run")
    with files_end_at(NOTHING_FITS):
        said = wardround("simulate", *changed(overrides, "num_rounds=5"))
    assert said.code == 1
    assert f"error: {tmp_path / 'run' / 'settings.json'}: File too large" in said.err
    assert "Make room" in said.err
    assert contents(tmp_path / "run") == before


def test_a_model_that_does_not_fit_leaves_the_old_one(
    overrides: list[str], tmp_path: Path
) -> None:
    # All rounds are done: of the large files, only the model's weights are written again.
    assert wardround("simulate", *overrides).code == 0
    model = contents(tmp_path / "run" / "model")
    with files_end_at(CHECKPOINT_DOES_NOT_FIT):
        said = wardround("simulate", *overrides)
    assert said.code == 1
    assert str(tmp_path / "run" / "model") in said.err
    assert contents(tmp_path / "run" / "model") == model
    assert last_checkpoint(tmp_path / "run") == 2


# --- folder in use --------------------------------------------------------------------


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let another process hold the run folder."""
    code = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.stdin.close()


def test_a_folder_that_another_process_holds_is_refused(
    overrides: list[str], tmp_path: Path
) -> None:
    assert wardround("simulate", *overrides).code == 0
    before = contents(tmp_path / "run")
    with held(tmp_path / "run"):
        said = wardround("simulate", *changed(overrides, "num_rounds=3"))
        assert contents(tmp_path / "run") == before
    assert said.code == 2
    assert f"run_dir is '{tmp_path / 'run'}'" in said.err
    assert "another process" in said.err
    assert "choose another run_dir" in said.err
    assert wardround("simulate", *changed(overrides, "num_rounds=3")).code == 0


@pytest.mark.slow
def test_a_sweep_leaves_a_cell_that_another_process_runs(
    overrides: list[str], tmp_path: Path
) -> None:
    cell = tmp_path / "sweep" / "cells" / "tiny-files-k1-s0"
    budget = ["num_clients=1", "data.budget_rounds=2", "data.second_threshold_rounds=2"]
    half = changed(overrides, *budget, "num_rounds=1", f"run_dir={cell}")
    assert wardround("simulate", *half).code == 0
    before = contents(cell)
    with held(cell):
        said = wardround(
            "sweep",
            *for_sweep(changed(overrides, *budget, f"run_dir={tmp_path / 'sweep'}")),
        )
        assert contents(cell) == before
    assert f"tiny-files-k1-s0 left alone: run_dir is '{cell}'" in said.err
    assert "another process" in said.err


# --- hub out of reach -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            "model=bert",
            [
                "model.name is 'google-bert/bert-base-cased'",
                "set model.name=<that folder>",
            ],
        ),
        (
            "data=imdb",
            ["data.hub_name is stanfordnlp/imdb: the hub", "data.path=<the folder"],
        ),
    ],
)
def test_without_the_hub_the_message_names_a_local_folder(
    choice: str, words: list[str], overrides: list[str], tmp_path: Path
) -> None:
    group = choice.split("=")[0]
    kept = [text for text in overrides if text.split("=")[0].split(".")[0] != group]
    command = [sys.executable, "-m", "wardround.server.cli", "simulate", *kept, choice]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty_cache"),
    }
    started = time.monotonic()
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    # There are no further tries; most of the time is Python importing torch.
    assert time.monotonic() - started < 60


# --- a user and a terminal that are not there ------------------------------------------


def test_a_user_without_a_home_folder_can_simulate(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A container can run with a user number alone. Token ids are not kept; one line says so."""

    def fail(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.setattr(Path, "expanduser", fail)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    token_cache.say_no_home.cache_clear()
    kept = [word for word in overrides if not word.startswith("data.token_cache")]
    said = wardround("simulate", *kept, "data.token_cache=auto")
    assert said.code == 0, said.err
    assert [record.name for record in caplog.records].count(token_cache.__name__) == 1
    assert "data.token_cache" in caplog.text
    assert len(history(tmp_path / "run")) == 3


def test_scratch_folder_that_is_too_long_for_ray(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 40}")
    said = wardround("simulate", *overrides, "engine=ray")
    assert said.code == 2
    assert "TMPDIR is '/tmp/xxx" in said.err
    assert "RAY_TMPDIR=/tmp" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_closed_terminal_stops_a_run(overrides: list[str], tmp_path: Path) -> None:
    """The run says so in its folder, and continues with the same command."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "wardround.server.cli", "simulate"]
    command += changed(overrides, "num_rounds=100000")
    own, terminal = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=take_terminal,
    )
    os.close(terminal)
    reader = threading.Thread(target=read_to_the_end, args=(own,), daemon=True)
    reader.start()
    try:
        wait_for(lambda: has_rounds(run, 2), 120, "two rounds")
        # The reader holds the terminal open, so it gets the signal that closing would send.
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(own)
    assert RunFolder(run).status()["state"] == "stopped"
    rounds = len(history(run))
    said = wardround("simulate", *changed(overrides, f"num_rounds={rounds}"))
    assert said.code == 0, said.err
    assert len(history(run)) == rounds + 1


def read_to_the_end(descriptor: int) -> None:
    """Read and forget, so that a writer is never blocked."""
    with suppress(OSError):
        while os.read(descriptor, 4096):
            pass


def has_rounds(run: Path, count: int) -> bool:
    """Return if the history has this many lines."""
    file = run / "history.jsonl"
    return file.exists() and len(file.read_text().splitlines()) >= count


# --- arithmetic -----------------------------------------------------------------------


def finite_line(text: str) -> Any:
    """Read a history line as strict JSON."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} in a history line")

    return json.loads(text, parse_constant=refuse)


def test_a_loss_that_is_not_finite_ends_the_run(
    overrides: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = wardround("simulate", *changed(overrides, "train.learning_rate=1e30"))
    assert said.code == 1
    assert f"error: round 1: client 0: {DIVERGED}" in said.err
    assert "Lower train.learning_rate" in said.err
    status = RunFolder(run).status()
    assert status["state"] == "failed"
    assert status["reason"].startswith(f"round 1: client 0: {DIVERGED}")
    assert last_checkpoint(run) == 0
    lines = [
        finite_line(line) for line in (run / "history.jsonl").read_text().splitlines()
    ]
    assert [line["round"] for line in lines] == [0]
    assert math.isfinite(lines[0]["test"]["loss"])
    assert not (run / "model").exists()
