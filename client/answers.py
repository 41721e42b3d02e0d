"""What a client answers: content in, content out, and no more than is meant to leave."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import RecordDict

from client.round import count_held_out, introduce, run_local_round
from client.site import Site
from common.model.train import LossNotFinite
from common.wire.messages import (
    EVALUATE,
    HELLO,
    TRAIN,
    LacksBase,
    pack_card,
    pack_counts,
    pack_lack,
    pack_refusal,
    pack_update,
    unpack_hello,
    unpack_task,
)

log = logging.getLogger(__name__)

ANSWERS: dict[str, Callable[[RecordDict, Site], RecordDict]] = {
    HELLO: lambda content, site: pack_card(introduce(unpack_hello(content), site)),
    TRAIN: lambda content, site: pack_update(run_local_round(unpack_task(content), site)),
    EVALUATE: lambda content, site: pack_counts(count_held_out(unpack_task(content), site)),
}


def answer(kind: str, content: RecordDict, find_site: Callable[[], Site]) -> RecordDict:
    """Do the work, or refuse. The details of a failure stay in this machine's log.

    An exception's text may hold a path, a label or a piece of text; what crosses is its kind only.

    Args:
        kind: a message type of `common/wire/messages.py`.
    """
    try:
        return ANSWERS[kind](content, find_site())
    except LacksBase as lack:
        log.info("the tensors that a task is written against are not held here; asking for all of them")
        return pack_lack(str(lack))
    except LossNotFinite as error:
        return pack_refusal(str(error))
    except Exception as error:
        log.exception("this client could not answer a message of type %s", kind)
        return pack_refusal(f"{type(error).__name__}; see the client's own log")


def warm_up() -> None:
    """Import what takes seconds, before anybody waits for it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401
