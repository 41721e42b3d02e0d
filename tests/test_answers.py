"""A site stores one answer for each plan and round, and never trains that round twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from wardround.client.answers import Answers, Begun, SiteAnswer
from wardround.common.errors import SiteRefusal
from wardround.common.tasks.label import label_sums
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import (
    pack_counts,
    pack_missing_base,
    pack_refusal,
    pack_update,
)
from wardround.common.wire.messages import EVALUATE, TRAIN, Update
from wardround.common.wire.objects import record_objects, sizes

PLAN, OTHER = "p" * 64, "q" * 64
BEGUN = Begun(model="m1", data="d1")
COUNTS = label_sums(1.5, np.eye(2, dtype=np.int64))


def update(round: int = 1) -> RecordDict:
    """Return an answer with arrays of several types, one of them empty."""
    arrays: dict[str, np.ndarray] = {
        "widths": np.array([1, 2, 4], dtype=np.uint8),
        "steps": np.arange(29, dtype=np.uint8),
        "others": np.zeros(0, dtype=np.int32),
    }
    payload = Payload("exact", arrays)
    return pack_update(Update(round, "layout", payload, 5, 2, 0.1 + 0.2, 1.25, COUNTS))


def ids(content: RecordDict) -> dict[str, tuple[str, int]]:
    """Return hash and size of every record, as they are signed."""
    return sizes(record_objects(content, {}))


def begin(
    answers: Answers,
    round: int,
    kind: str = TRAIN,
    plan: str = PLAN,
    begun: Begun = BEGUN,
    floor: int = 0,
    most: int = 100,
) -> SiteAnswer | str | None:
    """Return the stored answer, None, or the code of a refusal."""
    try:
        return answers.begin(plan, kind, round, begun, floor, most)
    except SiteRefusal as no:
        return no.code


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    """Return the answers of a site that has not answered yet."""
    return Answers(tmp_path)


def test_an_answer_is_sent_again_byte_for_byte(
    answers: Answers, tmp_path: Path
) -> None:
    assert begin(answers, 1) is None
    content = update()
    answers.keep(PLAN, TRAIN, 1, content, 0.25)
    for again in (answers, Answers(tmp_path)):  # also after a restart
        found = begin(again, 1)
        assert isinstance(found, SiteAnswer)
        assert (ids(found.content), found.update_norm) == (ids(content), 0.25)


def test_a_begun_round_without_an_answer_is_trained_again(answers: Answers) -> None:
    assert begin(answers, 1) is None
    assert begin(answers, 1) is None
    assert begin(answers, 1, begun=Begun("another", "d1")) == "answered_otherwise"


def test_a_sent_answer_that_is_lost_is_never_trained_again(
    answers: Answers, tmp_path: Path
) -> None:
    begin(answers, 1)
    answers.keep(PLAN, TRAIN, 1, update(), None)
    (file,) = tmp_path.rglob("train-1.answer")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    for content in (bytes(damaged), b"", file.read_bytes()[:5]):
        file.write_bytes(content)
        assert begin(answers, 1) == "answer_lost"
    file.unlink()
    assert begin(answers, 1) == "answer_lost"


def test_the_next_round_proves_that_the_server_has_this_one(
    answers: Answers, tmp_path: Path
) -> None:
    begin(answers, 1)
    answers.keep(PLAN, TRAIN, 1, update(1), None)
    assert begin(answers, 2) is None
    assert list(tmp_path.rglob("train-1.answer")) == []
    assert begin(answers, 1) == "answer_lost"
    assert begin(answers, 4) is None
    assert begin(answers, 3) == "out_of_order"


def test_rounds_of_an_earlier_version_are_not_answered_again(answers: Answers) -> None:
    assert begin(answers, 3, floor=3) == "answer_lost"
    assert begin(answers, 4, floor=3) is None


def test_counts_are_sent_for_one_model_of_a_plan(answers: Answers) -> None:
    assert begin(answers, 3, kind=EVALUATE) is None
    answers.keep(PLAN, EVALUATE, 3, pack_counts(COUNTS), None)
    assert isinstance(begin(answers, 3, kind=EVALUATE), SiteAnswer)
    assert begin(answers, 2, kind=EVALUATE) == "beyond_plan"
    assert begin(answers, 4, kind=EVALUATE) == "beyond_plan"


def test_a_refusal_that_reveals_something_about_the_texts_is_an_answer(
    answers: Answers,
) -> None:
    begin(answers, 1)
    answers.keep(PLAN, TRAIN, 1, pack_refusal("few_speak"), None)
    found = begin(answers, 1)
    assert isinstance(found, SiteAnswer)
    assert found.content.config_records["refusal"]["code"] == "few_speak"


@pytest.mark.parametrize(
    "content", [pack_refusal("killed"), pack_refusal("failed"), pack_missing_base("v")]
)
def test_the_refusal_of_a_process_that_failed_is_no_answer(
    answers: Answers, content: RecordDict
) -> None:
    begin(answers, 1)
    answers.keep(PLAN, TRAIN, 1, content, None)
    assert begin(answers, 1) is None
    assert answers.num_answers() == 0


def test_answers_are_counted_over_all_plans_also_ended_ones(answers: Answers) -> None:
    for plan in (PLAN, OTHER):
        assert begin(answers, 1, plan=plan, most=2) is None
        answers.keep(plan, TRAIN, 1, update(), None)
    assert begin(answers, 2, most=2) == "over_budget"
    # A stored answer does not count again.
    assert isinstance(begin(answers, 1, most=2), SiteAnswer)
    answers.end(PLAN)
    assert begin(answers, 1) == "answer_lost"
    assert begin(answers, 2, most=2) == "over_budget"
    assert list(answers.answered()) == [(PLAN, "d1"), (OTHER, "d1")]
    assert begin(answers, 2, most=3) is None


def test_only_its_owner_can_read_a_stored_answer(
    answers: Answers, tmp_path: Path
) -> None:
    begin(answers, 1)
    answers.keep(PLAN, TRAIN, 1, update(), None)
    (file,) = tmp_path.rglob("train-1.answer")
    assert file.stat().st_mode & 0o077 == 0


def test_a_plan_with_a_damaged_index_is_not_answered(
    answers: Answers, tmp_path: Path
) -> None:
    begin(answers, 1)
    (file,) = tmp_path.rglob("index.json")
    file.write_text("{half")
    with pytest.raises(ValueError, match=r"index\.json.*revoke"):
        begin(answers, 2)
