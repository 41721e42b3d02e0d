"""Machines that run out of disk, memory or time: what is lost, what is said, and how it goes on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation
from tests.e2e.processes import PATIENCE, wait_for
from tests.e2e.runs import (
    CONTINUE,
    JOIN_SECONDS,
    LONG,
    RUN_SECONDS,
    SIZES,
    lines,
    restore,
    simulated,
    stop,
    texts_of,
    wait_for_clients,
    wait_for_round,
    words_of,
    write_sites,
)
from tests.support.runs import hashes, history
from tests.support.tiny import Make
from wardround.server.deployment.certificates import issue_server_certificate

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

WORKER = "wardround.client.node.worker"
NUM_ROUNDS = 30
STATE_KIBIBYTES = 16 * 1024
"""Enough for beta's books over all tests."""


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of that size at `folder`, which needs the rights of root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder],
        check=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is; returns the file that holds it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


@pytest.fixture(scope="module")
def three(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Federation]:
    """A server and three sites at work. Beta's state folder is on a disk of its own."""
    made = Federation(tmp_path_factory.mktemp("three") / "federation")
    texts = write_sites(texts_of(made))
    with small_disk(state_of_beta(made), STATE_KIBIBYTES) as state:
        try:
            for name in SIZES:
                facts: dict[str, Any] = {"state": state} if name == "beta" else {}
                made.add_site(name, texts / f"{name}.csv", model=tiny_model, **facts)
            restore(made)
            yield made
        finally:
            made.close()


def state_of_beta(federation: Federation) -> Path:
    """Its state folder."""
    return federation.root.parent / "state"


def test_full_disks_at_the_server_and_at_a_site(
    three: Federation, overrides: list[str], make_settings: Make, tmp_path: Path
) -> None:
    simulation = simulated(
        make_settings, texts_of(three), tmp_path / "simulated", NUM_ROUNDS
    )
    expected = hashes(simulation)
    restore(three)
    with small_disk(tmp_path / "disk", 4096) as disk:
        run_dir = disk / "run"
        words = words_of(overrides, f"num_rounds={NUM_ROUNDS}", f"run_dir={run_dir}")
        process = three.submit(*words)
        wait_for_round(process, run_dir, 3)
        filler = fill(disk)
        assert process.wait(RUN_SECONDS) == 1, process.text()
        assert "No space left on device" in process.text()
        filler.unlink()
        assert hashes(run_dir) == expected[: len(lines(run_dir))]

        # A site sends no answer that it cannot note. The round waits until there is room again.
        process = three.submit("--resume", str(run_dir))
        wait_for_round(process, run_dir, len(lines(run_dir)) + 2)
        filler = fill(state_of_beta(three))
        node = three.sites["beta"].program
        wait_for(
            lambda: "Nothing is answered until this" in node.text(),
            PATIENCE,
            "the site to say so",
        )
        filler.unlink()
        assert process.wait(RUN_SECONDS) == 0, process.text()
        assert hashes(run_dir) == expected


def test_a_worker_out_of_memory(
    three: Federation, overrides: list[str], tmp_path: Path
) -> None:
    restore(three)
    node = three.sites["beta"].program
    connections = node.text().count("connected to the server")
    run_dir = tmp_path / "run"
    process = three.submit(*words_of(overrides), CONTINUE, LONG, f"run_dir={run_dir}")
    wait_for_round(process, run_dir, 2)
    (worker,) = three.processes("beta", WORKER)
    resource.prlimit(worker, resource.RLIMIT_AS, (2**20, 2**20))
    without = wait_for_clients(process, run_dir, [0, 2])
    (left,) = lines(run_dir)[without]["left_out"]
    assert "log" in left["reason"], left
    for pid in three.processes("beta", WORKER):
        os.kill(pid, signal.SIGKILL)  # as the kernel does
    wait_for_clients(process, run_dir, [0, 1, 2], after=without)
    assert node.text().count("connected to the server") == connections
    stop(three, process)


def test_a_certificate_that_expires_in_mid_run(
    three: Federation, overrides: list[str], make_settings: Make, tmp_path: Path
) -> None:
    simulation = simulated(
        make_settings, texts_of(three), tmp_path / "simulated", NUM_ROUNDS
    )
    expected = hashes(simulation)
    folder = three.folder
    restore(three)
    three.end_server()
    # The sites are up already. A start, again, and the first rounds take less than ten starts.
    ends = timedelta(seconds=40 + 10 * three.seconds_to_start)
    issue_server_certificate(
        *(folder.authority, folder.server, folder.addresses.certified),
        days=1,
        now=datetime.now(UTC) - timedelta(days=1) + ends,
        renew=True,
    )
    server = three.up()
    assert "WARNING: the server certificate ends in 0 days" in server.text()
    three.wait_online("alpha", "beta", "gamma", seconds=JOIN_SECONDS)
    run_dir = tmp_path / "run"
    words = words_of(overrides, LONG, f"run_dir={run_dir}")
    process = three.submit(*words)
    wait_for_round(process, run_dir, 4)
    # The end comes in the middle of a round.
    assert three.signal(signal.SIGSTOP, "gamma", WORKER) == 1
    assert process.wait(RUN_SECONDS + ends.seconds) == 1, process.text()
    assert three.signal(signal.SIGCONT, "gamma", WORKER) == 1
    assert "expired" in process.text(), process.text()
    assert "wardround server renew" in process.text()
    assert len(lines(run_dir)) > 2

    code, said = three.wardround("server", "renew", "--dir", str(folder.path))
    assert code == 0, said
    three.end_server()
    # A site that was told to get a new certificate has ended.
    restore(three)
    before = len(lines(run_dir))
    process = three.submit("--resume", str(run_dir))
    wait_for_round(process, run_dir, before + 3)
    stop(three, process)
    count = min(len(expected), len(lines(run_dir)))
    assert hashes(run_dir)[:count] == expected[:count]
    assert history(run_dir)[-1]["round"] > before


def test_clocks_that_are_wrong(
    three: Federation, overrides: list[str], tmp_path: Path
) -> None:
    """Four minutes behind is borne, ten are not."""
    restore(three)
    for name, seconds in (("beta", -240), ("gamma", -600)):
        three.leave(three.sites[name])
        clock = {
            "PYTHONPATH": str(Path(__file__).parent / "clock"),
            "WARDROUND_TEST_CLOCK": str(seconds),
        }
        three.join(three.sites[name], environment=clock)
    gamma = three.sites["gamma"].program
    assert gamma.wait(JOIN_SECONDS) == 1
    assert "not ready: clock" in gamma.text(), gamma.text()
    assert "timedatectl set-ntp true" in gamma.text()
    three.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
    two = ("--site", "alpha", "--site", "beta", "num_clients=2", "num_rounds=2")
    words = words_of(
        [word for word in overrides if not word.startswith("num_clients")], *two
    )
    run = three.run(*words, run_dir=tmp_path / "run", seconds=RUN_SECONDS)
    assert [len(line["clients"]) for line in history(run.path)] == [0, 2, 2]
    three.leave(three.sites["beta"])


def test_the_clocks_of_the_tests_are_wrong() -> None:
    """What the test above stands on: a process that is told so has another time."""
    path = str(Path(__file__).parent / "clock")
    code = "import time, datetime as d; print(time.time(), d.datetime.now(d.UTC).timestamp())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path, "WARDROUND_TEST_CLOCK": "-600"},
        capture_output=True,
        text=True,
        check=True,
    )
    now = datetime.now(UTC).timestamp()
    assert all(590 < now - float(told) < 660 for told in done.stdout.split())
