"""The clients of a run: how they are asked, what each is sent, and its answer, in client order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from httpx import HTTPError

from wardround.common.errors import Failed
from wardround.common.settings import Settings
from wardround.common.wire.forms import EXACT, WHOLE, encode, whole
from wardround.common.wire.messages import (
    KEPT_SECONDS,
    LATE_SECONDS,
    NOTICE,
    Declined,
    Refused,
    Task,
    content_of,
    is_lack,
    pack_notice,
    pack_tasks,
)

if TYPE_CHECKING:
    from wardround.common.wire.arrays import Payload
    from wardround.server.rounds.loop import RoundState

POLL_SECONDS = 0.2
_CLOCK_SECONDS = 1.0  # by which Flower's end of a message and ours may differ
_MARGIN_SECONDS = 300.0  # what a task may wait at the server before its client has it


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
                return Refused(f"its answer cannot be read ({type(error).__name__})")
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
                except Refused as refusal:
                    return refusal
            if is_over:
                return None
            time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Member:
    """One client of the run."""

    client: int
    """Its number, from 0; sites are numbered in the order of their names."""
    name: str
    """How messages call it: `client 3`, or the name of its site."""
    node_id: int
    num_examples: int
    num_held_out: int = 0
    """Examples it says it holds out."""
    most_examples: int | None = None
    """What it is registered for; None for no bound."""
    site: str | None = None
    """What its site was registered with, or its file is called; None where clients are no sites."""

    @property
    def weight(self) -> int:
        """Examples that its update is weighted by."""
        return (
            self.num_examples
            if self.most_examples is None
            else min(self.num_examples, self.most_examples)
        )


class Broadcast:
    """Sends the global tensors out, whole or as the step from those that a client still holds."""

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients, self._settings = clients, settings
        self._holds: dict[int, tuple[str, float]] = {}
        """The version of the model that a node said it keeps, and until when, by node id."""
        self.bytes_sent = 0
        """Of all tensors since this was set to 0, as they travelled."""

    def ask(
        self, members: Sequence[Member], state: RoundState, kind: str, number: int
    ) -> Iterator[tuple[Member, RecordDict | Refused]]:
        """Send the global tensors of `state` to all members, and yield what each answers, in their order.

        One that does not hold the tensors which its task was written against is sent the whole at once.
        """
        timeout = self._settings.strategy.round_timeout_seconds
        deadline = time.monotonic() + timeout
        answers = self._clients.ask(
            self._requests(members, state, number), kind, number, timeout
        )
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, RecordDict) and is_lack(answer):
                self.note(member, "")
                request = self._requests([member], state, number)
                (answer,) = self._clients.ask(
                    request, kind, number, max(0.0, deadline - time.monotonic())
                )
            yield (
                member,
                Declined(f"no answer within {timeout:g} s")
                if answer is None
                else answer,
            )

    def tell_refused(self, member: Member, number: int, refusal: Refused) -> None:
        """Tell a client why its answer does not count, if it cannot know."""
        if not isinstance(refusal, Declined):
            request = Request(member.node_id, pack_notice(f"round {number}: {refusal}"))
            self._clients.tell(request, NOTICE, number)

    def note(self, member: Member, version: str, answered: float = 0.0) -> None:
        """A client said which version of the model it keeps; empty for none.

        Args:
            answered: when, by `time.monotonic()`. Its answer may have waited long for the others', and by
                then the client may keep nothing any more: asking it once more costs the round its time.
        """
        self._holds[member.node_id] = (
            version,
            answered + KEPT_SECONDS - _MARGIN_SECONDS,
        )

    def step_from(
        self, before: RoundState, state: RoundState
    ) -> tuple[str, Payload] | None:
        """The version before, and the tensors of `state` written against it, if any client still holds it."""
        if before.version not in {version for version, _ in self._holds.values()}:
            return None
        step = encode(EXACT, state.tensors.numpy(), before.tensors.numpy())
        return None if step.form == WHOLE else (before.version, step)

    def _requests(
        self, members: Sequence[Member], state: RoundState, number: int
    ) -> list[Request]:
        """A task for each member, in their order; all with the same tensors share one record of them."""
        tensors = whole(state.tensors.numpy())
        settings = None if self._clients.approve_plans else self._settings.for_sites()
        task = Task(
            number,
            state.layout.digest,
            tensors,
            settings,
            state.version,
            mean_steps=state.mean_steps,
        )
        steps = [state.step] if state.step else []
        tasks = [
            task,
            *(replace(task, payload=payload, base=base) for base, payload in steps),
        ]
        groups: dict[str, list[Member]] = {task.base: [] for task in tasks}
        for member in members:
            held, until = self._holds.get(member.node_id, ("", 0.0))
            groups[held if held in groups and time.monotonic() < until else ""].append(
                member
            )
        contents: dict[int, RecordDict] = {}
        for task in tasks:
            group = groups[task.base]
            self.bytes_sent += task.payload.num_bytes * len(group)
            packed = pack_tasks(task, [member.client for member in group])
            contents |= dict(
                zip((member.node_id for member in group), packed, strict=True)
            )
        return [Request(member.node_id, contents[member.node_id]) for member in members]
