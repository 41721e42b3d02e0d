"""What a site notes, and what it does not do because it is noted."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from wardround.client.node.journal import Journal
from wardround.common.errors import NotAuthentic
from wardround.common.wire.signing import Question, Statement

STATEMENT = Statement(1, "run", 1, 1, "train", "a", "b", "n", "", {}, 0.0)


def question(attempt: int, run: str = "run", ends: float | None = None) -> Question:
    """An authentic one."""
    ends = time.time() + 60 if ends is None else ends
    return Question(
        replace(STATEMENT, run=run, attempt=attempt), "digest", "key", ends, "the plan"
    )


def test_attempts_only_rise_also_over_a_restart(tmp_path: Path) -> None:
    with Journal(tmp_path / "state") as journal:
        journal.begin(question(2))
        assert journal.was_begun(question(2))
        assert not journal.was_begun(question(3))
    with Journal(tmp_path / "state") as again:
        for attempt in (1, 2):
            with pytest.raises(NotAuthentic, match="replayed"):
                again.begin(question(attempt))
        again.begin(question(3))
        again.begin(question(1, run="another run"))


def test_runs_that_have_ended_are_forgotten(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin(question(1, run="old", ends=time.time() - 10_000))
        journal.begin(question(1, run="new"))
        assert "old" not in (tmp_path / "journal.json").read_text()


def test_what_cannot_be_written_has_not_happened(tmp_path: Path) -> None:
    with Journal(tmp_path / "state") as journal:
        (tmp_path / "state").rename(tmp_path / "away")
        (tmp_path / "state").write_text("no folder")
        with pytest.raises(OSError, match="state"):
            journal.begin(question(1))
        (tmp_path / "state").unlink()
        (tmp_path / "away").rename(tmp_path / "state")
        journal.begin(question(1))  # no replay: it was never begun


def test_the_message_in_hand_survives(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.take(b"\x00a letter")
        journal.count_refused("forged")
    with Journal(tmp_path) as again:
        assert (again.current, again.refused) == (b"\x00a letter", {"forged": 1})
        again.put_down()
        assert again.current == b""


def test_two_processes_do_not_share_it(tmp_path: Path) -> None:
    with (
        Journal(tmp_path),
        pytest.raises(ValueError, match="a site joins once"),
        Journal(tmp_path),
    ):
        pass


def test_a_file_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text("{half")
    with (
        pytest.raises(ValueError, match="not what this program wrote"),
        Journal(tmp_path),
    ):
        pass
