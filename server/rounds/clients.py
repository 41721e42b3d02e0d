"""The clients of a run: how they are asked, what each is sent, and its answer, in client order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from httpx import HTTPError

from wardround.common.errors import BadAnswer, RunFailed
from wardround.common.wire.codec import content_of
from wardround.common.wire.deadlines import LATE_SECONDS

if TYPE_CHECKING:
    pass

POLL_SECONDS = 0.2
_CLOCK_SECONDS = 1.0  # by which Flower's end of a message and ours may differ


@dataclass(frozen=True)
class Request:
    """What one node is asked."""

    node_id: int
    content: RecordDict


Answer = RecordDict | BadAnswer | None
"""What came back: a content, why there is none or it does not count, or None where nothing came in time."""


class Clients(Protocol):
    """The way to the clients of a run, wherever they are."""

    approve_plans: bool
    """Whether they execute a plan that they approved, so that no message brings settings."""
    most_bytes: float
    """Of the tensors of one update, by the model's size; for more there is no room made."""

    def online(self) -> Mapping[int, str]:
        """Node ids of those that can be asked now, each with its site's name ("" where it has none)."""

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
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

    approve_plans = False

    def __init__(self, grid: Grid) -> None:
        self._grid, self.most_bytes = grid, 0.0

    def online(self) -> Mapping[int, str]:
        """As in `Clients`."""
        return dict.fromkeys(sorted(self._grid.get_node_ids()), "")

    def ask(
        self, requests: Iterable[Request], kind: str, round: int, timeout: float
    ) -> Iterator[Answer]:
        """As in `Clients`."""
        deadline = time.monotonic() + timeout
        messages = [
            Message(
                request.content,
                request.node_id,
                kind,
                ttl=timeout + LATE_SECONDS,
                group_id=str(round),
            )
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
        return (self._answer_to(message_id, deadline) for message_id in message_ids)

    def tell(self, request: Request, kind: str, round: int) -> None:
        """As in `Clients`."""
        message = Message(
            request.content,
            request.node_id,
            kind,
            ttl=LATE_SECONDS,
            group_id=str(round),
        )
        # Asked for once, since a grid in this process works only when it is asked.
        list(self._grid.pull_messages(self._grid.push_messages([message])))

    def _answer_to(self, message_id: str, deadline: float) -> Answer:
        """Wait for one reply; asks at least once, also past the deadline."""
        while True:
            try:
                found = list(self._grid.pull_messages([message_id]))
            except (OSError, HTTPError, RunFailed):  # not the client's doing
                raise
            except (
                Exception
            ) as error:  # whatever a client may have sent in place of a message
                return BadAnswer(f"its answer cannot be read ({type(error).__name__})")
            is_over = time.monotonic() >= deadline - (_CLOCK_SECONDS if found else 0)
            if found:
                reply = found[0]
                # Flower's own word that no answer came in time.
                if (
                    is_over
                    and reply.has_error()
                    and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
                ):
                    return None
                try:
                    return content_of(reply)
                except BadAnswer as refusal:
                    return refusal
            if is_over:
                return None
            time.sleep(POLL_SECONDS)
