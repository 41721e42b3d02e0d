"""The journal of a site: questions that were begun, so that none is answered twice."""

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
    """Return an authentic question."""
    ends = time.time() + 60 if ends is None else ends
    statement = replace(STATEMENT, run=run, attempt=attempt)
    return Question(statement, "digest", "key", ends, "the plan")


def test_an_earlier_attempt_is_replayed_also_after_a_restart(tmp_path: Path) -> None:
    with Journal(tmp_path / "state") as journal:
        journal.begin(question(2))
        assert journal.was_begun(question(2))
        assert not journal.was_begun(question(3))
    with Journal(tmp_path / "state") as again:
        for attempt in (1, 2):
            with pytest.raises(NotAuthentic) as refused:
                again.begin(question(attempt))
            assert refused.value.reason == "replayed"
        again.begin(question(3))
        again.begin(question(1, run="another run"))


def test_runs_that_have_ended_are_forgotten(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin(question(1, run="old", ends=time.time() - 10_000))
        journal.begin(question(1, run="new"))
        assert "old" not in (tmp_path / "journal.json").read_text()


def test_a_question_that_cannot_be_noted_was_not_begun(tmp_path: Path) -> None:
    with Journal(tmp_path / "state") as journal:
        (tmp_path / "state").rename(tmp_path / "away")
        (tmp_path / "state").write_text("no folder")
        with pytest.raises(OSError, match="state"):
            journal.begin(question(1))
        (tmp_path / "state").unlink()
        (tmp_path / "away").rename(tmp_path / "state")
        # The question was never begun, so that this is no replay.
        journal.begin(question(1))


def test_the_current_message_survives_a_restart(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.take(b"\x00a letter")
        journal.count_refused("forged")
    with Journal(tmp_path) as again:
        assert again.current == b"\x00a letter"
        assert again.refused == {"forged": 1}
        again.put_down()
        assert again.current == b""


def test_two_processes_cannot_use_one_journal(tmp_path: Path) -> None:
    expected = rf"^state is '{tmp_path}'.*`wardround-site join`"
    with (
        Journal(tmp_path),
        pytest.raises(ValueError, match=expected),
        Journal(tmp_path),
    ):
        pass


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text("{half")
    with (
        pytest.raises(ValueError, match=r"journal\.json' .*ask the coordinator"),
        Journal(tmp_path),
    ):
        pass
