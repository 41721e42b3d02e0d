"""Clients that do not send the tensors that they trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from wardround.client.app import app as honest_app
from wardround.common.tasks.label import LABEL
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import pack_update, unpack_update
from wardround.common.wire.messages import Update

CONTINUE = "strategy.on_missing=continue"


def training_as(train: Callable[[Message, Context], Message]) -> ClientApp:
    """Return clients that are honest, except for their training."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        return honest_app(message, context)

    app.train()(train)
    return app


def tampering(change: Callable[[Update], Update], client: int = 1) -> ClientApp:
    """Return clients of which one changes its update before it sends it."""

    def train(message: Message, context: Context) -> Message:
        reply = honest_app(message, context)
        if context.node_config["partition-id"] != client:
            return reply
        update = change(unpack_update(reply.content, LABEL))
        return Message(pack_update(update), reply_to=message)

    return training_as(train)


def with_value(update: Update, value: float) -> Update:
    """Return a copy of the update with one changed element."""
    tensors = shared(update).copy()
    tensors[5] = value
    return with_tensors(update, tensors)


def shared(update: Update) -> np.ndarray:
    """Return the trained tensors."""
    return update.payload.arrays["shared"]


def with_tensors(update: Update, tensors: np.ndarray) -> Update:
    """Return the update with other tensors."""
    return replace(update, payload=Payload("whole", {"shared": tensors}))
