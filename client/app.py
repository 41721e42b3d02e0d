"""Flower handlers of a client: translate, delegate, and say no more than is meant to leave."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.local_round import count_held_out, introduce, run_local_round
from client.site import site_from
from common.learning import LossNotFinite
from common.messages import (
    pack_card,
    pack_counts,
    pack_receipt,
    pack_refusal,
    pack_update,
    unpack_hello,
    unpack_notice,
    unpack_task,
)

log = logging.getLogger(__name__)
app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Introduce this client."""
    return _answer(message, lambda: pack_card(introduce(unpack_hello(message), site_from(context)), message))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return _answer(
        message, lambda: pack_update(run_local_round(unpack_task(message), site_from(context)), message)
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Count what the global model gets right on the held-out texts."""
    return _answer(
        message, lambda: pack_counts(count_held_out(unpack_task(message), site_from(context)), message)
    )


@app.query("notice")
def notice(message: Message, context: Context) -> Message:
    """Put what the server has to say into this machine's log."""
    log.warning("the server says: %s", unpack_notice(message))
    return pack_receipt(message)


def _answer(message: Message, work: Callable[[], Message]) -> Message:
    """Do the work, or refuse. The details of a failure stay in this machine's log.

    An exception's text may hold a path, a label or a piece of text; what crosses is its kind only.
    """
    try:
        return work()
    except LossNotFinite as error:
        return pack_refusal(str(error), message)
    except Exception as error:
        log.exception("this client could not do what round %s asked", message.metadata.group_id)
        return pack_refusal(f"{type(error).__name__}; see the client's own log", message)
