"""Flower's app of a client: it receives messages and returns the answers of `client/round.py`.

Simulations use it, and Flower users who run this app on SuperNodes of their own. `wardround-site
join` does not use it: such a site runs only its own installed code.
"""

from __future__ import annotations

import logging

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from wardround.common.wire.codec import pack_refusal, unpack_notice
from wardround.common.wire.deadlines import seconds_left_of
from wardround.common.words import LONGEST_TEXT, quoted

log = logging.getLogger(__name__)
app = ClientApp()


@app.query()
@app.train()
@app.evaluate()
def answer_message(message: Message, context: Context) -> Message:
    """Introduce this client, train one round, or measure the global model."""
    is_real = "site-file" in context.node_config
    if is_real and seconds_left_of(message) <= 0:
        log.warning("a message arrived after the end of its round and is refused")
        return Message(pack_refusal("late"), reply_to=message)
    from wardround.client.round import answer
    from wardround.client.site import site_from

    kind = message.metadata.message_type
    found = answer(kind, message.content, lambda: site_from(context.node_config))
    return Message(found.content, reply_to=message)


@app.query("notice")
def notice(message: Message, context: Context) -> Message:
    """Write the server's notice into this machine's log."""
    log.warning(
        "the server writes: %s", quoted(unpack_notice(message.content), LONGEST_TEXT)
    )
    return Message(RecordDict(), reply_to=message)
