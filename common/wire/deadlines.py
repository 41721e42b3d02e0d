"""Limits of time and of attempts that both server and clients keep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import Message

LATE_SECONDS = 600.0
"""Time after a round in which the server still fetches answers, but no client starts work."""
KEPT_SECONDS = 1800.0
"""Time for which an idle client keeps the tensors of the last round."""
MOST_ATTEMPTS = 3
"""A question whose answer is lost is asked again; this is the limit on all attempts in a round."""


def seconds_left_of(message: Message) -> float:
    """Return the seconds until a message's round ends, by this machine's clock."""
    metadata = message.metadata
    ends = metadata.created_at + metadata.ttl - LATE_SECONDS
    return float(ends - time.time())
