"""Ask every client something and take the answers in client order, never waiting without a bound."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.exits import Failed
from common.messages import LATE_SECONDS

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_CLOCK_SECONDS = 1.0  # by which Flower's end of a message and ours may differ


class RunFailed(Failed):
    """The run cannot go on. The text names the round, the client and the next step."""


@dataclass(frozen=True)
class Request:
    """What one node is asked."""

    node_id: int
    content: RecordDict


def ask(
    grid: Grid, requests: Iterable[Request], kind: str, round: int, timeout: float
) -> Iterator[Message | None]:
    """Send all requests, then yield one reply for each, in their order; None where none came in time.

    A reply is pulled only when its turn has come: those that are early wait where they are, so no more
    than one is held here, and sums over them do not depend on who was fastest. Messages live on for
    LATE_SECONDS past the timeout: the answers behind one that never came can still be pulled then.

    Args:
        timeout: seconds from sending until the last reply is given up.

    Raises:
        RunFailed: a request could not be sent.
    """
    deadline = time.monotonic() + timeout
    messages = [
        Message(request.content, request.node_id, kind, ttl=timeout + LATE_SECONDS, group_id=str(round))
        for request in requests
    ]
    num_messages = len(messages)
    message_ids = list(grid.push_messages(messages))
    del messages  # and with them, what was serialised to send them
    if len(message_ids) != num_messages:
        raise RunFailed(
            f"round {round}: {num_messages - len(message_ids)} of {num_messages} messages could not be "
            "sent; a node left between joining and sending. Run the same command again."
        )
    for message_id in message_ids:
        yield _wait_for(grid, message_id, deadline)


def _wait_for(grid: Grid, message_id: str, deadline: float) -> Message | None:
    """The reply to one message; asks at least once, also past the deadline. None too for what is no reply."""
    while True:
        try:
            found = list(grid.pull_messages([message_id]))
        except (
            IndexError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # no message at all
            log.warning("a reply cannot be read (%s)", type(error).__name__)
            return None
        if found:
            return None if _has_expired(found[0], deadline) else found[0]
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)


def _has_expired(reply: Message, deadline: float) -> bool:
    """Whether it is Flower's own word that no answer came in time."""
    is_gone = reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    return is_gone and time.monotonic() >= deadline - _CLOCK_SECONDS
