"""Workers change only the duration of a round, and they end with their simulation."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.runs import history, measured, start, wait_for_round, with_keys
from tests.support.tiny import Make
from wardround.client.app import app as client_app
from wardround.common.data.corpus import open_corpus
from wardround.common.errors import RunFailed
from wardround.common.process.shared_memory import create_memory
from wardround.common.settings.tree import Settings
from wardround.server.app import conduct
from wardround.server.engines import simulate as door
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.engines.pool import WorkerPool
from wardround.server.engines.run_memory import (
    corpus_from_memory,
    corpus_to_memory,
    tensors_in,
)
from wardround.server.engines.simulate import count_workers, simulate
from wardround.server.rounds.clients import GridClients


def children(pid: int) -> set[int]:
    """Return the processes whose parent is `pid`."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.add(int(folder.name))
    return found


def run_in_pool(settings: Settings, num_workers: int) -> WorkerPool:
    """Run in a pool with this number of workers; return the closed pool."""
    with WorkerPool(num_workers, settings) as pool:
        grid = LocalGrid(client_app, settings.num_clients, pool)
        conduct(GridClients(grid), settings)
    return pool


@pytest.mark.parametrize(
    "where", ["server", pytest.param("sites", marks=pytest.mark.slow)]
)
def test_one_worker_four_workers_and_none_give_the_same_numbers(
    make_settings: Make, tmp_path: Path, where: str
) -> None:
    """Every number of the history except seconds is the same. The clients have unequal sizes."""
    common = ["num_clients=5", f"evaluation.where={where}", "data.train_examples=47"]
    simulate(make_settings(*common, f"run_dir={tmp_path / 'none'}"))
    for num_workers in (1, 4):
        settings = make_settings(*common, f"run_dir={tmp_path / str(num_workers)}")
        pool = run_in_pool(settings, num_workers)
        assert measured(tmp_path / str(num_workers)) == measured(tmp_path / "none")
        # Small models may have a spare slot for each worker, so updates do not pile up.
        assert num_workers < len(pool._slots) <= 2 * num_workers


@pytest.mark.slow
def test_memory_follows_the_workers_and_not_the_clients(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model of more than 64 MiB has no spare slots.
    monkeypatch.setattr("wardround.server.engines.pool._SPARE_BYTES", 0)
    pool = run_in_pool(make_settings("num_clients=12", "num_rounds=1"), 2)
    assert len(pool._slots) == 3


def broken_pool(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    sign: signal.Signals,
    first: int = 1,
) -> None:
    """Run in two workers. In round `first`, one of them gets the signal."""
    begin = WorkerPool.begin
    open_ = WorkerPool.open
    rounds = []

    def open_and_wait(self: WorkerPool) -> None:
        open_(self)
        deadline = time.monotonic() + 120
        while len(children(self._process.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def begin_and_break(self: WorkerPool, *arguments: Any) -> None:
        begin(self, *arguments)
        rounds.append(1)
        if len(rounds) == first:
            os.kill(min(children(self._process.pid)), sign)

    monkeypatch.setattr(WorkerPool, "open", open_and_wait)
    monkeypatch.setattr(WorkerPool, "begin", begin_and_break)
    run_in_pool(settings, 2)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_killed_worker_ends_the_run_and_names_the_client(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"round 1: client [0-2]: .*worker process ended"
    with pytest.raises(RunFailed, match=said):
        broken_pool(monkeypatch, make_settings(), signal.SIGKILL)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_killed_worker_is_missing_from_one_round_only(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("strategy.on_missing=continue", "num_rounds=2")
    broken_pool(monkeypatch, settings, signal.SIGKILL)
    lines = history(Path(settings.run_dir))
    assert [len(line["clients"]) for line in lines] == [0, 2, 3]


@pytest.mark.e2e
@pytest.mark.slow
def test_a_worker_that_stops_is_ended_and_replaced(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(
        "strategy.on_missing=continue",
        "num_rounds=3",
        "strategy.round_timeout_seconds=15",
    )
    broken_pool(monkeypatch, settings, signal.SIGSTOP, first=2)
    lines = history(Path(settings.run_dir))
    assert [len(line["clients"]) for line in lines] == [0, 3, 2, 3]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_simulation(
    overrides: list[str], tmp_path: Path, kind: signal.Signals
) -> None:
    process = start(
        "simulate", with_keys(overrides, num_rounds=5000, **{"engine.workers": 2})
    )
    wait_for_round(process, tmp_path / "run", 2)
    (fork_server,) = children(process.pid)
    family = {fork_server} | children(fork_server)
    assert len(family) == 3
    os.kill(process.pid, kind)
    assert process.wait(120) == (130 if kind == signal.SIGINT else -kind)
    assert_gone(family)


def assert_gone(pids: set[int]) -> None:
    """Wait until all have ended, for a minute at most."""
    deadline = time.monotonic() + 60
    while alive := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("more", "cpus", "expected"),
    [
        ([], 8, 1),
        (["engine.workers=auto"], 8, 3),
        (["engine.workers=auto", "threads=4"], 8, 2),
        (["engine.workers=auto", "threads=auto"], 8, 1),
        (["engine.workers=2"], 1, 2),
        (["engine.workers=9"], 1, 3),
    ],
)
def test_the_number_of_workers_follows_settings_and_cpus(
    make_settings: Make,
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    cpus: int,
    expected: int,
) -> None:
    """There are three clients, with one thread each by default."""

    def resolve(threads: Any) -> int:
        return cpus if threads == "auto" else int(threads)

    monkeypatch.setattr(door, "resolve_threads", resolve)
    assert count_workers(make_settings(*more)) == expected


def test_workers_that_would_share_the_same_cpus_are_refused(
    make_settings: Make,
) -> None:
    with pytest.raises(
        ValueError, match=r"engine\.workers is 2 .*threads is auto.* Set threads=1"
    ):
        simulate(make_settings("engine.workers=2", "threads=auto"))
    with pytest.raises(ValueError, match=r"engine\.workers is 0"):
        make_settings("engine.workers=0")


def test_texts_come_back_from_memory_as_they_were(make_settings: Make) -> None:
    corpus = open_corpus(make_settings())
    fd, facts = corpus_to_memory(corpus)
    again = corpus_from_memory(fd, json.loads(json.dumps(facts)))
    os.close(fd)
    for part in ("train", "test"):
        for name in ("ids", "starts", "targets"):
            ours = getattr(getattr(corpus, part), name)
            theirs = getattr(getattr(again, part), name)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
    assert again.label_names == corpus.label_names
    assert again.site_sizes == corpus.site_sizes
    assert again.train.pad_id == corpus.train.pad_id


def test_every_view_of_shared_memory_sees_a_change() -> None:
    fd = create_memory(3 * 4 * 1008)
    # The size of a layout is a multiple of 16.
    ours = tensors_in(fd, 1008)
    theirs = tensors_in(fd, 1008)
    os.close(fd)
    assert len(ours) == 3
    ours[1].fill_(2.5)
    assert torch.equal(theirs[1], torch.full((1008,), 2.5))
    assert theirs[0].sum() == theirs[2].sum() == 0
    assert all(tensor.data_ptr() % 64 == 0 for tensor in ours)
