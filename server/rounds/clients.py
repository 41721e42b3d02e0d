"""Ask every client something and take the answers in client order, never waiting without a bound."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from httpx import HTTPError

from common.errors import Failed
from common.wire.messages import LATE_SECONDS, Refused, content_of

POLL_SECONDS = 0.2
_CLOCK_SECONDS = 1.0  # by which Flower's end of a message and ours may differ


class RunFailed(Failed):
    """The run cannot go on. The text names the round, the client and the next step."""


@dataclass(frozen=True)
class Request:
    """What one node is asked."""

    node_id: int
    content: RecordDict


Answer = RecordDict | Refused | None
"""What came back: a content, why there is none or it does not count, or None where nothing came in time."""


class Clients(Protocol):
    """The clients of a run, wherever they are."""

    def online(self) -> Mapping[int, str]:
        """Node ids of those that can be asked now, each with its site's name ("" where it has none)."""

    def ask(self, requests: Iterable[Request], kind: str, round: int, timeout: float) -> Iterator[Answer]:
        """Send all requests; the iterator then gives one answer for each, in their order.

        An answer is fetched only when its turn has come: those that are early wait where they are, so no
        more than two are held here, and sums over them do not depend on who was fastest. What was delivered
        can still be fetched LATE_SECONDS past the timeout: the answers behind one that never came.

        Args:
            timeout: seconds from sending until the last answer is given up.

        Raises:
            RunFailed: a request could not be sent.
        """

    def tell(self, request: Request, kind: str, round: int) -> None:
        """Send something that nobody waits to be answered."""


class GridClients:
    """Clients behind a Flower grid that is trusted: a simulation's, or stock SuperNodes."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def online(self) -> Mapping[int, str]:
        """As in `Clients`."""
        return dict.fromkeys(sorted(self._grid.get_node_ids()), "")

    def ask(self, requests: Iterable[Request], kind: str, round: int, timeout: float) -> Iterator[Answer]:
        """As in `Clients`."""
        deadline = time.monotonic() + timeout
        messages = [
            Message(request.content, request.node_id, kind, ttl=timeout + LATE_SECONDS, group_id=str(round))
            for request in requests
        ]
        num_messages = len(messages)
        message_ids = list(self._grid.push_messages(messages))
        del messages  # and with them, what was serialised to send them
        if len(message_ids) != num_messages:
            raise RunFailed(
                f"round {round}: {num_messages - len(message_ids)} of {num_messages} messages could not be "
                "sent; a node left between joining and sending. Run the same command again."
            )
        return self._answers(message_ids, deadline)

    def _answers(self, message_ids: Iterable[str], deadline: float) -> Iterator[Answer]:
        for message_id in message_ids:
            try:
                reply = self._wait_for(message_id, deadline)
                yield None if reply is None else content_of(reply)
            except Refused as refusal:
                yield refusal

    def tell(self, request: Request, kind: str, round: int) -> None:
        """As in `Clients`."""
        message = Message(request.content, request.node_id, kind, ttl=LATE_SECONDS, group_id=str(round))
        # Asked for once, since a grid in this process works only when it is asked.
        list(self._grid.pull_messages(self._grid.push_messages([message])))

    def _wait_for(self, message_id: str, deadline: float) -> Message | None:
        """The reply to one message; asks at least once, also past the deadline."""
        while True:
            try:
                found = list(self._grid.pull_messages([message_id]))
            except (OSError, HTTPError, RunFailed):  # not the client's doing
                raise
            except Exception as error:  # whatever a client may have sent in place of a message
                raise Refused(f"its answer cannot be read ({type(error).__name__})") from None
            if found:
                return None if _has_expired(found[0], deadline) else found[0]
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS)


def _has_expired(reply: Message, deadline: float) -> bool:
    """Whether it is Flower's own word that no answer came in time."""
    is_gone = reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    return is_gone and time.monotonic() >= deadline - _CLOCK_SECONDS
