"""Signed statements: which ones count, and each reason why one does not count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wardround.common.credentials import fingerprint, new_key, public_line
from wardround.common.errors import NotAuthentic
from wardround.common.wire.signing import (
    ANSWER,
    CLOCK_SECONDS,
    RUN,
    TASK,
    RunStatement,
    Statement,
    _signed_bytes,
    check_answer,
    check_question,
    open_envelope,
    payload_digest,
    sign,
)

COORDINATOR: Any = new_key("signing")
RUN_KEY: Any = new_key("signing")
SITE: Any = new_key("signing")
NOW = 1_000_000.0
RUN_SAYS = RunStatement("a run", public_line(RUN_KEY), NOW - 10, NOW + 1000, "0" * 64)
RUN_ENVELOPE = sign(RUN, RUN_SAYS, COORDINATOR)
QUESTION = Statement(
    version=1,
    run=payload_digest(RUN_ENVELOPE),
    round=3,
    attempt=4,
    kind="train",
    sender=fingerprint(public_line(RUN_KEY)),
    receiver=fingerprint(public_line(SITE)),
    nonce="n",
    answers="",
    records={"task": ("0" * 64, 9)},
    expires=NOW + 60,
)


def reason_of(question: Statement = QUESTION, **changed: Any) -> str:
    """Return the reason why a question does not count; empty if it counts."""
    usual = {
        "run": RUN_ENVELOPE,
        "key": RUN_KEY,
        "kind": "train",
        "now": NOW,
        "type": TASK,
    }
    facts = usual | changed
    statement = sign(facts["type"], question, facts["key"])
    envelopes = {"run": facts["run"], "statement": statement}
    coordinator = public_line(COORDINATOR)
    own = fingerprint(public_line(SITE))
    try:
        check_question(envelopes, coordinator, own, facts["kind"], facts["now"])
    except NotAuthentic as error:
        return error.reason
    return ""


def test_the_signed_bytes_follow_the_dsse_specification() -> None:
    """The example is from protocol.md of the specification."""
    encoded = _signed_bytes("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_question_of_the_coordinators_run_counts() -> None:
    assert reason_of() == ""
    assert reason_of(now=NOW + 60 + CLOCK_SECONDS) == ""  # clocks may differ


@pytest.mark.parametrize(
    ("reason", "question", "changed"),
    [
        ("forged", QUESTION, {"key": SITE}),
        ("forged", QUESTION, {"type": ANSWER}),
        ("forged", QUESTION, {"run": sign(RUN, RUN_SAYS, RUN_KEY)}),
        ("forged", replace(QUESTION, run="0" * 64), {}),
        ("forged", replace(QUESTION, sender="SHA256:other"), {}),
        ("misdirected", replace(QUESTION, receiver="SHA256:other"), {}),
        ("misdirected", QUESTION, {"kind": "evaluate"}),
        ("expired", QUESTION, {"now": NOW + 61 + CLOCK_SECONDS}),
        ("expired", QUESTION, {"now": NOW - 11 - CLOCK_SECONDS}),
        ("damaged", QUESTION, {"run": "no envelope"}),
    ],
)
def test_a_wrong_question_does_not_count_and_has_a_reason(
    reason: str, question: Statement, changed: dict[str, Any]
) -> None:
    assert reason_of(question, **changed) == reason


def answer_to(question: Statement, **changed: Any) -> Statement:
    """Sign an answer as a site does."""
    digest = payload_digest(sign(TASK, question, RUN_KEY))
    facts = {
        "sender": question.receiver,
        "receiver": question.sender,
        "nonce": "",
        "answers": digest,
    }
    return replace(question, **(facts | changed))


@pytest.mark.parametrize(
    ("reason", "changed", "key", "now"),
    [
        ("", {}, SITE, NOW),
        ("unasked", {"answers": "0" * 64}, SITE, NOW),
        ("forged", {}, RUN_KEY, NOW),
        ("forged", {"round": 2}, SITE, NOW),
        ("forged", {"kind": "evaluate"}, SITE, NOW),
        ("misdirected", {"receiver": "SHA256:other"}, SITE, NOW),
        ("misdirected", {"sender": "SHA256:other"}, SITE, NOW),
        ("expired", {}, SITE, NOW + 61 + CLOCK_SECONDS),
    ],
)
def test_a_wrong_answer_does_not_count_and_has_a_reason(
    reason: str, changed: dict[str, Any], key: Any, now: float
) -> None:
    asked = {payload_digest(sign(TASK, QUESTION, RUN_KEY)): QUESTION}
    envelope = sign(ANSWER, answer_to(QUESTION, **changed), key)
    try:
        check_answer(envelope, public_line(SITE), asked, now)
        found = ""
    except NotAuthentic as error:
        found = error.reason
    assert found == reason


def test_one_of_several_signatures_is_enough() -> None:
    both = sign(RUN, RUN_SAYS, COORDINATOR, RUN_KEY)
    for key in (COORDINATOR, RUN_KEY):
        assert open_envelope(both, RUN, [public_line(SITE), public_line(key)])
    with pytest.raises(NotAuthentic) as refused:
        open_envelope(both, RUN, [public_line(SITE)])
    assert refused.value.reason == "forged"
