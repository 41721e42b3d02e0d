"""The messages between server and client. `codec.py` writes them as Flower's records.

    type            the server sends        the client returns
    hello           settings or nothing     Introduction
    train           TrainRequest            Update
    evaluate        TrainRequest            Sums
    query.notice    text                    nothing

Instead of the result a client may return a refusal (`refusals.py`), or the version that it lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.wire.arrays import Payload

HELLO, TRAIN, EVALUATE, NOTICE = "query", "train", "evaluate", "query.notice"
KINDS = (HELLO, TRAIN, EVALUATE, NOTICE)
"""All message types."""


@dataclass(frozen=True)
class TrainRequest:
    """The server's request to a client in one round."""

    round: int
    layout: str
    """Digest of the tensors' names and shapes."""
    payload: Payload
    """The global tensors, read only: all clients of the round share the same arrays."""
    settings: Settings | None = None
    """None if the client has approved a plan."""
    version: str = ""
    """SHA-256 of the global tensors."""
    base: str = ""
    """The version that `payload` builds on; empty if the payload is whole."""
    client: int = -1
    """Number of the client in this run."""
    mean_steps: float = 0.0
    """Mean number of optimiser steps of the clients in the last round; 0 without control
    variates, or if they start again."""


@dataclass(frozen=True)
class Update:
    """The result of one client's round."""

    round: int
    layout: str
    """Digest of the tensors' names and shapes."""
    payload: Payload
    """The trained tensors, relative to the global ones; valid until the next reply is pulled."""
    num_examples: int
    num_steps: int
    """Optimiser steps."""
    loss: float
    """Mean training loss."""
    seconds: float
    """Duration of the client's work."""
    test: Sums | None
    """Sums of the received model on the client's held-out texts, if sites evaluate."""
    holds: str = ""
    """The version that the next request may build on; empty if the client keeps nothing."""
    withheld: int = 0
    """1 if the client's policy keeps its counts at the site, else 0."""
    uncorrected: int = 0
    """1 if a control variate should have corrected the steps, but the client has none; else 0."""


@dataclass(frozen=True)
class Introduction:
    """A client's answer to hello."""

    client: int
    """Its number in a simulation; -1 for a real site, which the server knows by its key."""
    num_examples: int
    """Number of training texts."""
    num_held_out: int
    """Number of held-out texts, if sites evaluate."""
