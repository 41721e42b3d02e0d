"""`wardround-site join` as a program, with a server of the tests' own: what it answers, outlives, leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import wait_for
from tests.support.fake_fleet import FakeFleet
from tests.support.join_world import SECONDS, World, joined_world
from tests.support.site_door import QUICK, site_command


@pytest.fixture
def world(tmp_path: Path, tiny_texts: Path, tiny_model: Path) -> Iterator[World]:
    """A site that has not joined yet."""
    with joined_world(tmp_path, tiny_texts, tiny_model) as made:
        yield made


def test_join_starts_nothing_where_the_site_is_not_ready(world: World) -> None:
    world.fleet.refusal = "unknown_key"
    done = site_command("join", *QUICK, folder=world.folder)
    assert done.returncode == 1
    assert "not ready: registered. Nothing was started." in done.stdout
    assert not (world.folder / "state").exists()


def test_join_answers_and_leaves_no_process(world: World) -> None:
    process = world.join()
    assert world.num_examples() == 38
    worker = world.worker()
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert "SIGTERM: leaving" in world.said()
    assert "left; no process of this site is running" in world.said()
    assert not Path(f"/proc/{worker}").exists()
    names = [name for name, _, _ in world.fleet.calls]
    assert names[-1] == "DeactivateNode"
    # It asks for nothing but messages and their objects: no bundle, no run config.
    assert set(names) <= {
        *("ActivateNode", "PullMessages", "PullObject", "PushMessages", "PushObject"),
        *("ConfirmMessageReceived", "SendNodeHeartbeat", "DeactivateNode"),
    }


def test_a_worker_that_dies_or_hangs_costs_one_message(world: World) -> None:
    world.join()
    assert world.num_examples() == 38
    first = world.worker()
    os.kill(first, signal.SIGSTOP)
    sent = world.hello()
    wait_for(lambda: _has_begun(world, 2), SECONDS, "the message to be begun")
    os.kill(first, signal.SIGKILL)
    assert world.fleet.refusal_of(sent) == "killed"
    assert world.num_examples() == 38
    os.kill(world.worker(), signal.SIGSTOP)
    assert world.fleet.refusal_of(world.hello(seconds=2.0)) == "hangs"
    assert world.num_examples() == 38
    assert not Path(f"/proc/{first}").exists()


def test_a_site_that_is_killed_goes_on_with_the_message_in_hand(world: World) -> None:
    process = world.join()
    assert world.num_examples() == 38
    os.kill(world.worker(), signal.SIGSTOP)
    in_hand = world.hello()
    wait_for(lambda: _has_begun(world, 2), SECONDS, "the message to be begun")
    process.kill()
    process.wait(SECONDS)
    world.join()
    # It may have answered already: it says so, and the server asks again.
    assert world.fleet.refusal_of(in_hand) == "lost"
    assert world.num_examples() == 38


def _has_begun(world: World, attempt: int) -> bool:
    return f'"attempt": {attempt}' in (world.folder / "state" / "journal.json").read_text()


def test_a_second_join_is_refused(world: World) -> None:
    world.join()
    done = site_command("join", *QUICK, folder=world.folder)
    assert (done.returncode, "a site joins once" in done.stderr) == (2, True), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda fleet: setattr(fleet, "refusal", "other_node"), "wants this site to connect anew"),
        (lambda fleet: setattr(fleet, "refusal", "wrong_time"), "correct its clock"),
    ],
)
def test_join_connects_anew_after_what_heals(
    change: Callable[[FakeFleet], None], told: str, world: World
) -> None:
    world.join()
    change(world.fleet)
    world.wait_to_read(told)
    world.fleet.refusal = ""
    wait_for(lambda: world.said().count("connected to the server") == 2, SECONDS, "another connection")
    assert world.num_examples() == 38


def test_a_disk_that_is_full_stops_answers_not_the_program(world: World) -> None:
    """A state folder that cannot be written stands for it: what cannot be noted is not answered."""
    process = world.join()
    assert world.num_examples() == 38
    state = world.folder / "state"
    state.rename(world.folder / "away")
    state.write_text("no folder")
    sent = world.hello()
    world.wait_to_read("nothing is answered until then")
    assert sent.reply is None
    state.unlink()
    (world.folder / "away").rename(state)
    time.sleep(0.5)
    assert process.poll() is None
    assert world.num_examples() == 38
