"""`wardround-site join` run as a program, with a server of the tests."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import wait_for
from tests.support.fake_fleet import FakeFleet
from tests.support.join_world import SECONDS, World, joined_world
from tests.support.site_door import FEW_CHECKS, QUICK, ROOT, site_command
from tests.support.site_lab import WIDE
from wardround.client.site_file import SiteFile, write_site_file
from wardround.common.credentials import new_key, private_text
from wardround.common.ledger import FILE_NAME, parts_of, read_ledger

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def world(tmp_path: Path, tiny_texts: Path, tiny_model: Path) -> Iterator[World]:
    """A site that has not joined yet."""
    with joined_world(tmp_path, tiny_texts, tiny_model) as made:
        yield made


@pytest.fixture(scope="module")
def joined(
    tmp_path_factory: pytest.TempPathFactory, tiny_texts: Path, tiny_model: Path
) -> Iterator[World]:
    """A site at work, for all tests that leave it at work."""
    folder = tmp_path_factory.mktemp("joined")
    with joined_world(folder, tiny_texts, tiny_model) as made:
        made.join(*FEW_CHECKS)
        assert made.num_examples() == 38
        yield made


def test_join_starts_nothing_if_the_site_is_not_ready(world: World) -> None:
    world.fleet.refusal = "unknown_key"
    done = site_command("join", *QUICK, folder=world.folder)
    assert done.returncode == 1
    assert "not ready: registered" in done.stdout
    assert not (world.folder / "state").exists()


def test_join_answers_and_leaves_no_process(world: World) -> None:
    process = world.join()
    assert world.num_examples() == 38
    worker = world.worker()
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert "SIGTERM: leaving" in world.said()
    assert "no process of this site is running" in world.said()
    assert not Path(f"/proc/{worker}").exists()
    names = [name for name, _, _ in world.fleet.calls]
    assert names[-1] == "DeactivateNode"
    # It asks for messages and their objects only: no bundle, no run config.
    assert set(names) <= {
        "ActivateNode",
        "PullMessages",
        "PullObject",
        "PushMessages",
        "PushObject",
        "ConfirmMessageReceived",
        "SendNodeHeartbeat",
        "DeactivateNode",
    }


def test_a_worker_that_dies_or_hangs_costs_one_message(joined: World) -> None:
    first = joined.worker()
    os.kill(first, signal.SIGSTOP)
    sent = joined.hello()
    wait_for(lambda: _has_begun(joined, sent), SECONDS, "the message to be begun")
    os.kill(first, signal.SIGKILL)
    assert joined.fleet.refusal_of(sent) == "killed"
    assert joined.num_examples() == 38
    os.kill(joined.worker(), signal.SIGSTOP)
    assert joined.fleet.refusal_of(joined.hello(seconds=4.0)) == "hangs"
    assert joined.num_examples() == 38
    assert not Path(f"/proc/{first}").exists()


def test_a_site_that_is_killed_continues_the_interrupted_message(world: World) -> None:
    process = world.join()
    assert world.num_examples() == 38
    os.kill(world.worker(), signal.SIGSTOP)
    interrupted = world.hello()
    wait_for(lambda: _has_begun(world, interrupted), SECONDS, "the message to be begun")
    process.kill()
    process.wait(SECONDS)
    world.join()
    # It may have answered already. It reports that, and the server asks again.
    assert world.fleet.refusal_of(interrupted) == "lost"
    assert world.num_examples() == 38


def _has_begun(world: World, sent: Any) -> bool:
    journal = (world.folder / "state" / "journal.json").read_text()
    return f'"attempt": {sent.statement.attempt}' in journal


def test_a_second_join_is_refused(joined: World) -> None:
    done = site_command("join", *QUICK, folder=joined.folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "a site joins once" in done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda fleet: setattr(fleet, "refusal", "other_node"), "connect again"),
        (lambda fleet: setattr(fleet, "refusal", "wrong_time"), "correct its clock"),
    ],
)
def test_join_connects_again_after_a_passing_refusal(
    change: Callable[[FakeFleet], None], expected: str, joined: World
) -> None:
    before = joined.said().count("connected to the server")
    change(joined.fleet)
    joined.wait_to_read(expected)
    joined.fleet.refusal = ""
    wait_for(
        lambda: joined.said().count("connected to the server") == before + 1,
        SECONDS,
        "another connection",
    )
    assert joined.num_examples() == 38


def test_a_disk_that_is_full_stops_answers_not_the_program(joined: World) -> None:
    """A state folder that cannot be written: a site answers only what it can record."""
    process = joined.processes[-1]
    state = joined.folder / "state"
    state.rename(joined.folder / "away")
    state.write_text("no folder")
    sent = joined.hello()
    joined.wait_to_read("Nothing is answered until this")
    assert sent.reply is None
    state.unlink()
    (joined.folder / "away").rename(state)
    time.sleep(0.5)
    assert process.poll() is None
    assert joined.num_examples() == 38


SMALL_PARTS = {
    "PYTHONPATH": os.pathsep.join((str(ROOT / "tests" / "e2e" / "parts"), str(ROOT))),
    "WARDROUND_TEST_PART": "4000",
}


def ledger_of(world: World) -> Path:
    """Return the first file of the ledger."""
    return world.folder / "state" / FILE_NAME


def test_refused_messages_are_in_the_ledger_when_the_program_ends(world: World) -> None:
    process = world.join(*FEW_CHECKS)
    for _ in range(3):
        sent = world.hello(envelope=lambda said: None)
        assert world.fleet.refusal_of(sent) == "unsigned"
    assert world.num_examples() == 38
    assert world.said().count("is refused: unsigned") == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    last = list(read_ledger(ledger_of(world)).values())[-1]
    assert (last.what, last.counts) == ("did_not_count", {"unsigned": 3})
    journal = json.loads((world.folder / "state" / "journal.json").read_text())
    assert journal["refused"] == {"unsigned": 3}


def test_a_ledger_of_several_files_goes_on_and_an_old_copy_of_it_stops_the_site(
    world: World,
) -> None:
    process = world.join(*FEW_CHECKS, **SMALL_PARTS)
    for _ in range(8):
        assert world.num_examples() == 38
    lines = read_ledger(ledger_of(world))
    oldest, *_, newest = [
        found for found, entry in lines.items() if entry.what == "leaves"
    ]
    for known in (oldest, newest):  # a run that is resumed, and the last answer
        num_examples = world.num_examples(
            change=lambda s, known=known: replace(s, ledger=known)
        )
        assert num_examples == 38
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0

    parts = parts_of(ledger_of(world))
    assert len(parts) > 2
    for part in parts[1:]:
        part.unlink()
    process = world.join(*FEW_CHECKS, **SMALL_PARTS)
    world.hello(change=lambda s: replace(s, ledger=newest))
    assert process.wait(SECONDS) == 1
    (missing,) = re.findall(
        r"wardround-site ledger accept ([0-9a-f]{64})", world.said()
    )
    assert missing == newest
    accepted = site_command("ledger", "accept", missing, folder=world.folder)
    assert accepted.returncode == 0
    world.join(*FEW_CHECKS, **SMALL_PARTS)
    assert world.num_examples(change=lambda s: replace(s, ledger=newest)) == 38


def test_a_state_folder_of_another_key_is_not_continued(world: World) -> None:
    process = world.join(*FEW_CHECKS)
    assert world.num_examples() == 38
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    before = ledger_of(world).read_bytes()
    own = (world.folder / "signing.key").read_text()
    (world.folder / "signing.key").write_text(private_text(new_key("signing")))
    done = site_command("join", *QUICK, *FEW_CHECKS, folder=world.folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "belongs to the key" in done.stderr
    assert "state: " in done.stderr
    assert ledger_of(world).read_bytes() == before
    (world.folder / "signing.key").write_text(own)
    world.join(*FEW_CHECKS)
    assert world.num_examples() == 38


def write(world: World, **changed: Any) -> SiteFile:
    """Change the site's file."""
    site = replace(world.site, **changed)
    write_site_file(site, world.folder / "site.yaml")
    return site


def test_only_the_worker_and_checks_that_end_load_torch(world: World) -> None:
    """It takes seconds and memory; on a site without a GPU the worker alone needs it."""
    process = world.join(*QUICK)  # the checks of model and lengths are among them
    assert world.num_examples() == 38
    assert "ok      model" in world.said()
    assert "ok      lengths" in world.said()
    assert "libtorch" in Path(f"/proc/{world.worker()}/maps").read_text()
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_policy_that_is_tightened_holds_at_once(joined: World) -> None:
    assert joined.num_examples() == 38
    write(joined, policy=replace(WIDE, min_sites=3))
    assert joined.fleet.refusal_of(joined.hello()) == "policy"
    write(joined)
    assert joined.num_examples() == 38


def test_a_site_file_that_is_wrong_stops_answers_until_it_is_right(
    joined: World,
) -> None:
    process = joined.processes[-1]
    ready = joined.said().count("can be used again")
    file = joined.folder / "site.yaml"
    right = file.read_text()
    wait = "until this file can be used again"
    for wrong in (right.replace("name:", "nmae:", 1), right + "\n{half", ""):
        file.write_text(wrong)
        before = joined.said().count(wait)
        for _ in range(3):
            assert joined.fleet.refusal_of(joined.hello()) == "bad_input"
        assert joined.said().count(wait) == before + 1
    file.unlink()
    assert joined.fleet.refusal_of(joined.hello()) == "bad_input"
    file.write_text(right)
    assert joined.num_examples() == 38
    # Four lines say that it cannot be used yet, one that it can.
    assert joined.said().count("can be used again") == ready + 5
    assert process.poll() is None


def test_a_change_that_needs_a_restart_is_reported(joined: World) -> None:
    assert joined.num_examples() == 38
    write(
        joined,
        name="lakeside",
        state=joined.folder / "other",
        server_address="localhost:1",
    )
    assert joined.num_examples() == 38
    joined.wait_to_read("name, server.address, state has changed")
    assert "restart" in joined.said()
    assert not (joined.folder / "other").exists()
    write(joined)
