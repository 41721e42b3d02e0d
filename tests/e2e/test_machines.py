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

from tests.e2e.federation import END_SECONDS, Federation
from tests.e2e.processes import wait_for
from tests.e2e.runs import (
    CONTINUE,
    JOIN_SECONDS,
    LONG,
    RUN_SECONDS,
    lines,
    simulated,
    start_sites,
    stop,
    wait_for_clients,
    wait_for_round,
    words_of,
    write_sites,
)
from tests.support.runs import hashes, history
from tests.support.tiny import Make
from wardround.server.deployment.certificates import issue_server_certificate

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_ROUNDS = 30


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


def test_full_disks_at_the_server_and_at_a_site(
    federation: Federation,
    overrides: list[str],
    make_settings: Make,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    texts = write_sites(tmp_path / "texts")
    expected = hashes(
        simulated(make_settings, texts, tmp_path / "simulated", NUM_ROUNDS)
    )
    federation.up()
    with (
        small_disk(tmp_path / "disk", 4096) as disk,
        small_disk(tmp_path / "state", 256) as state,
    ):
        for name in ("alpha", "beta", "gamma"):
            facts: dict[str, Any] = {"state": state} if name == "beta" else {}
            federation.join(
                federation.add_site(
                    name, texts / f"{name}.csv", model=tiny_model, **facts
                )
            )
        federation.wait_online("alpha", "beta", "gamma", seconds=JOIN_SECONDS)
        run_dir = disk / "run"
        words = words_of(overrides, f"num_rounds={NUM_ROUNDS}", f"run_dir={run_dir}")
        process = federation.submit(*words)
        wait_for_round(process, run_dir, 3)
        filler = fill(disk)
        assert process.wait(RUN_SECONDS) == 1, process.text()
        assert "No space left on device" in process.text()
        filler.unlink()
        assert hashes(run_dir) == expected[: len(lines(run_dir))]

        # A site sends no answer that it cannot note. The round waits until there is room again.
        process = federation.submit("--resume", str(run_dir))
        wait_for_round(process, run_dir, len(lines(run_dir)) + 2)
        filler = fill(state)
        node = federation.sites["beta"].program
        wait_for(
            lambda: "Nothing is answered until this" in node.text(),
            60,
            "the site to say so",
        )
        filler.unlink()
        assert process.wait(RUN_SECONDS) == 0, process.text()
        assert hashes(run_dir) == expected
        federation.end()


def test_a_worker_out_of_memory(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    federation.up()
    start_sites(federation, write_sites(tmp_path / "texts"), tiny_model)
    run_dir = tmp_path / "run"
    process = federation.submit(
        *words_of(overrides), CONTINUE, LONG, f"run_dir={run_dir}"
    )
    wait_for_round(process, run_dir, 2)
    (worker,) = federation.processes("beta", "wardround.client.node.worker")
    resource.prlimit(worker, resource.RLIMIT_AS, (2**20, 2**20))
    without = wait_for_clients(process, run_dir, [0, 2])
    (left,) = lines(run_dir)[without]["left_out"]
    assert "log" in left["reason"], left
    for pid in federation.processes("beta", "wardround.client.node.worker"):
        os.kill(pid, signal.SIGKILL)  # as the kernel does
    wait_for_clients(process, run_dir, [0, 1, 2], after=without)
    node = federation.sites["beta"].program
    assert node.text().count("connected to the server") == 1
    stop(federation, process)


def test_clocks_that_are_wrong(
    federation: Federation, overrides: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    """Four minutes behind is borne, ten are not."""
    texts = write_sites(tmp_path / "texts")
    federation.up()
    for name, seconds in (("alpha", 0), ("beta", -240), ("gamma", -600)):
        site = federation.add_site(name, texts / f"{name}.csv", model=tiny_model)
        clock = {
            "PYTHONPATH": str(Path(__file__).parent / "clock"),
            "WARDROUND_TEST_CLOCK": str(seconds),
        }
        federation.join(site, environment=clock if seconds else {})
    gamma = federation.sites["gamma"].program
    assert gamma.wait(JOIN_SECONDS) == 1
    assert "not ready: clock" in gamma.text(), gamma.text()
    assert "timedatectl set-ntp true" in gamma.text()
    federation.wait_online("alpha", "beta", seconds=JOIN_SECONDS)
    two = ("--site", "alpha", "--site", "beta", "num_clients=2", "num_rounds=2")
    words = words_of(
        [word for word in overrides if not word.startswith("num_clients")], *two
    )
    run = federation.run(*words, run_dir=tmp_path / "run", seconds=RUN_SECONDS)
    assert [len(line["clients"]) for line in history(run.path)] == [0, 2, 2]


def test_a_certificate_that_expires_in_mid_run(
    federation: Federation,
    overrides: list[str],
    make_settings: Make,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    texts = write_sites(tmp_path / "texts")
    expected = hashes(
        simulated(make_settings, texts, tmp_path / "simulated", NUM_ROUNDS)
    )
    folder = federation.folder
    server = federation.up()
    start_sites(federation, texts, tiny_model)
    server.send(signal.SIGTERM)
    server.wait(END_SECONDS)
    # The sites are up already, so the short time is left for the rounds.
    ends = timedelta(seconds=100)
    issue_server_certificate(
        *(folder.authority, folder.server, folder.addresses.certified),
        days=1,
        now=datetime.now(UTC) - timedelta(days=1) + ends,
        renew=True,
    )
    server = federation.up()
    assert "WARNING: the server certificate ends in 0 days" in server.text()
    federation.wait_online("alpha", "beta", "gamma", seconds=JOIN_SECONDS)
    run_dir = tmp_path / "run"
    words = words_of(overrides, LONG, f"run_dir={run_dir}")
    process = federation.submit(*words)
    assert process.wait(RUN_SECONDS) == 1, process.text()
    assert "expired" in process.text(), process.text()
    assert "wardround server renew" in process.text()
    assert len(lines(run_dir)) > 2

    code, said = federation.wardround("server", "renew", "--dir", str(folder.path))
    assert code == 0, said
    server.send(signal.SIGTERM)
    server.wait(END_SECONDS)
    federation.up()
    for site in federation.sites.values():
        if (
            not site.program.is_alive()
        ):  # it was told to get a new certificate, and ended
            federation.join(site)
    federation.wait_online("alpha", "beta", "gamma", seconds=JOIN_SECONDS)
    before = len(lines(run_dir))
    process = federation.submit("--resume", str(run_dir))
    wait_for_round(process, run_dir, before + 3)
    stop(federation, process)
    count = min(len(expected), len(lines(run_dir)))
    assert hashes(run_dir)[:count] == expected[:count]
    assert history(run_dir)[-1]["round"] > before


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
