"""The way to the clients of a run: send each a request, and return the answers in order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from httpx import HTTPError

from wardround.common.errors import BadAnswer, RunFailed
from wardround.common.wire.codec import content_of
from wardround.common.wire.deadlines import LATE_SECONDS

POLL_SECONDS = 0.2
_CLOCK_SECONDS = 1.0
"""Largest difference between the time at which Flower and this program end a message."""


@dataclass(frozen=True)
class Request:
    """A message for one node."""

    node_id: int
    content: RecordDict


Answer = RecordDict | BadAnswer | None
"""A content. A refusal if there is no content or it does not count. None if no answer came in
time."""


class Clients(Protocol):
    """The clients of a run, wherever they are."""

    approve_plans: bool
    """True if they execute a plan that they approved: then messages carry no settings."""
    most_bytes: float
    """Most bytes of the tensors in one update, from the size of the model. Larger
    updates are refused before memory is allocated."""

    def online(self) -> Mapping[int, str]:
        """Return the nodes that can be asked now: node ids, each with its site's name.

        The name is "" if a node has none.
        """

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
        """Send all requests; the iterator then yields one answer for each, in their order.

        An answer is fetched only when its turn has come. So at most two are in memory
        here, and sums over them do not depend on which client was fastest. If an answer
        never comes, those after it can still be fetched for LATE_SECONDS after the
        timeout.

        Args:
            timeout: seconds from sending until the server stops waiting for answers.

        Raises:
            RunFailed: a request could not be sent.
        """

    def tell(self, request: Request, kind: str, round: int) -> None:
        """Send a message for which no answer is expected."""


class GridClients:
    """Clients behind a trusted Flower grid: a simulation's, or stock SuperNodes."""

    approve_plans = False

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.most_bytes = 0.0

    def online(self) -> Mapping[int, str]:
        """As in `Clients`."""
        node_ids = sorted(self._grid.get_node_ids())
        return dict.fromkeys(node_ids, "")

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
        """As in `Clients`."""
        deadline = time.monotonic() + timeout
        lifetime = timeout + LATE_SECONDS
        messages = [_message(request, kind, round, lifetime) for request in requests]
        num_messages = len(messages)
        message_ids = list(self._grid.push_messages(messages))
        del messages  # and with them, the serialised tensors
        if len(message_ids) != num_messages:
            raise RunFailed(
                f"round {round}: {num_messages - len(message_ids)} of {num_messages} "
                "messages could not be sent; a node left between joining and sending. "
                "Run the same command again."
            )
        answer_to = partial(self._answer_to, deadline=deadline)
        return map(answer_to, message_ids)

    def tell(self, request: Request, kind: str, round: int) -> None:
        """As in `Clients`."""
        message = _message(request, kind, round, LATE_SECONDS)
        # Pulled once, since a grid in this process works only when it is pulled.
        message_ids = self._grid.push_messages([message])
        list(self._grid.pull_messages(message_ids))

    def _answer_to(self, message_id: str, deadline: float) -> Answer:
        """Wait for one reply; ask at least once, also after the deadline."""
        while True:
            try:
                found = list(self._grid.pull_messages([message_id]))
            except (OSError, HTTPError, RunFailed):
                raise  # not caused by the client
            except Exception as error:
                # A client may send anything in place of a message.
                kind = type(error).__name__
                return BadAnswer(f"its answer cannot be read ({kind})")
            now = time.monotonic()
            for reply in found:
                if now >= deadline - _CLOCK_SECONDS and _is_timeout(reply):
                    return None
                try:
                    return content_of(reply)
                except BadAnswer as refusal:
                    return refusal
            if now >= deadline:
                return None
            time.sleep(POLL_SECONDS)


def _message(request: Request, kind: str, round: int, lifetime: float) -> Message:
    return Message(
        content=request.content,
        dst_node_id=request.node_id,
        message_type=kind,
        ttl=lifetime,
        group_id=str(round),
    )


def _is_timeout(reply: Message) -> bool:
    """Return True if this is Flower's own reply that no answer came in time."""
    if not reply.has_error():
        return False
    return reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
