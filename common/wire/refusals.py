"""Refusals: the codes that a client sends, and the server's text for each."""

from __future__ import annotations

from typing import get_args

from wardround.common.errors import DIVERGED, Reason
from wardround.common.settings.tree import known_keys

PENDING, LOST = "plan_pending", "lost"
REFUSALS = {
    "late": "the message came after the end of the round",
    "unknown_kind": "this site does not know messages of this type",
    LOST: "its answer was already being sent, and cannot be sent again",
    "failed": "it failed; see the client's own log",
    "bad_input": "its texts, its model or the settings are wrong; see the client's own log",
    "diverged": f"{DIVERGED}: its loss is not finite. Lower train.learning_rate",
    "hangs": "its worker process did not answer in time; see the site's own log",
    "killed": "its worker process was killed, perhaps for lack of memory; see the site's own log",
    "ended": "its worker process ended; see the site's own log",
    **{reason: f"the question does not count: {reason}" for reason in get_args(Reason)},
    PENDING: "its people have not yet decided on the plan (wardround-site approve)",
    "plan_unknown": "it has not received the plan",
    "plan_rejected": "its people have rejected the plan",
    "plan_revoked": "its people have revoked their approval of the plan",
    "plan_over": "the plan has ended, or has not begun",
    "not_in_plan": "the plan does not list it with its key",
    "unknown_peer": (
        "it does not trust the key of another site in the plan (wardround-site peers)"
    ),
    "other_version": (
        "its version of wardround does not work with the server's "
        "(wardround-site check)"
    ),
    "too_many_plans": "too many plans wait there for a decision",
    "policy": "its policy does not allow it",
    "beyond_plan": "the server asked for more than the plan allows",
    "out_of_order": "it has already answered a later round",
    "data_changed": "its texts have changed since the plan was approved",
    "data_too_close": (
        "only a few of its texts differ from those of an earlier answer "
        "(its policy.min_changed_texts)"
    ),
    "too_few_texts": "it has fewer texts than its policy requires",
    "too_few_tokens": (
        "its texts have fewer words than its policy requires for a model of this width"
    ),
    "few_speak": (
        "almost all of its update would come from a few texts "
        "(its policy.min_speaking_texts)"
    ),
    "over_budget": (
        "it has given all the answers that its policy allows "
        "(its policy.max_total_answers)"
    ),
    "answered_otherwise": (
        "it has answered this round for another model, and answers each round once"
    ),
    "answer_lost": (
        "it has sent its answer to this round and lost its copy; "
        "it does not train the round again"
    ),
    "another_start": "the first model is not the one it computes from its own files",
    "too_far": "the model is further from the last one than its policy allows",
    "counts_withheld": "it keeps its counts, because one is small (its policy.min_count)",
    "another_model": "its policy does not list its model's file",
}
"""The codes that a client sends if it does not do its work, and the server's text for each."""


def refusal_text(code: str, key: str) -> str:
    """Return the server's text for a known code, with the setting in question if it exists."""
    setting = f" ({key})" if key in known_keys() else ""
    return REFUSALS[code] + setting
