"""Flower handlers of a client: pass the work on, and wrap up the answer.

Flower starts a process for every message. At a site that has a resident process this one needs no PyTorch:
it hands the message over and waits.
"""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.resident import Resident
from common.messages import EVALUATE, HELLO, TRAIN, pack_refusal, seconds_left_of, unpack_notice

log = logging.getLogger(__name__)
app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Introduce this client."""
    return _answer(HELLO, message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round."""
    return _answer(TRAIN, message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Count what the global model gets right on the held-out texts."""
    return _answer(EVALUATE, message, context)


@app.query("notice")
def notice(message: Message, context: Context) -> Message:
    """Put what the server has to say into this machine's log."""
    log.warning("the server says: %s", unpack_notice(message.content))
    return Message(RecordDict(), reply_to=message)


def _answer(kind: str, message: Message, context: Context) -> Message:
    site_file = context.node_config.get("site-file")
    resident = None if site_file is None else Resident.of_this_site()
    seconds_left = seconds_left_of(message)
    if site_file is not None and seconds_left <= 0:
        log.warning("a message came after its round was over, and is left undone")
        content = pack_refusal("the message came after the round was over")
    elif resident is not None:
        content = resident.answer(kind, message.content, Path(str(site_file)), seconds_left)
    else:
        from client.answers import answer
        from client.site import site_from

        content = answer(kind, message.content, lambda: site_from(context.node_config))
    return Message(content, reply_to=message)
