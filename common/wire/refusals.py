"""Refusals: the codes that a client sends, and the server's text for each."""

from __future__ import annotations

from wardround.common.errors import DIVERGED
from wardround.common.settings.tree import known_keys

PENDING, LOST = "plan_pending", "lost"
_COUNTS_NOT = "the question does not count"
REFUSALS = {
    "late": "the message came after the round was over",
    "unknown_kind": "this site does not know messages of this type",
    LOST: "its answer began to leave, and cannot be sent again",
    "failed": "it could not do what was asked; see the client's own log",
    "bad_input": "its texts, its model or the settings are not as they must be; see the client's own log",
    "diverged": f"{DIVERGED}: its loss is no number any more. Lower train.learning_rate",
    "hangs": "its worker process gave no answer in time; see the site's own log",
    "killed": "its worker process was killed, as when memory runs out; see the site's own log",
    "ended": "its worker process ended; see the site's own log",
    **{
        reason: f"{_COUNTS_NOT}: {reason}"
        for reason in (
            "unsigned",
            "forged",
            "misdirected",
            "replayed",
            "expired",
            "damaged",
            "unasked",
        )
    },
    PENDING: "its people have not yet decided on the plan (wardround-site approve)",
    "plan_unknown": "it was not told of the plan",
    "plan_rejected": "its people have rejected the plan",
    "plan_revoked": "its people have revoked their approval of the plan",
    "plan_over": "the plan's time is over, or has not begun",
    "not_in_plan": "it does not stand in the plan under its key",
    "unknown_peer": "it does not know another site of the plan under its key (wardround-site peers)",
    "other_version": "its version of wardround does not work with the server's (wardround-site check)",
    "too_many_plans": "too many plans wait there for a decision",
    "policy": "its policy does not allow it",
    "beyond_plan": "more was asked than the plan allows",
    "out_of_order": "the round lies before one that it has answered",
    "data_changed": "its texts have changed since the plan was approved",
    "data_too_close": "its texts differ by a few from texts it answered for (its policy.min_changed_texts)",
    "too_few_texts": "it has fewer texts than its policy asks for",
    "too_few_tokens": "its texts have fewer words than its policy asks for, for a model of this width",
    "few_speak": "almost all of its update would come from a few texts (its policy.min_speaking_texts)",
    "over_budget": "it has answered as often as its policy allows in all (its policy.max_total_answers)",
    "answered_otherwise": "it has answered this round for another model, and answers each round once",
    "answer_lost": "its answer to this round left and is not there any more; it does not train it again",
    "another_start": "the first model is not the one it computes from its own files",
    "too_far": "the model lies further from the last one than its policy allows",
    "counts_withheld": "its counts stay there: one of them is small (its policy.min_count)",
    "another_model": "its model's file is not one of those its policy lists",
}
"""Why a client does not do what was asked: the codes that cross, and what the server says to each."""


def refusal_text(code: str, key: str) -> str:
    """Return the server's text for a known code, with the setting in question if there is such a setting."""
    setting = f" ({key})" if key in known_keys() else ""
    return REFUSALS[code] + setting
