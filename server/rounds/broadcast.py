"""Sending the global tensors to the clients of a round."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import RecordDict

from wardround.common.errors import BadAnswer, NoAnswer
from wardround.common.settings.tree import Settings
from wardround.common.wire.codec import is_missing_base, pack_notice, pack_requests
from wardround.common.wire.deadlines import KEPT_SECONDS
from wardround.common.wire.forms import EXACT, WHOLE, encode, whole
from wardround.common.wire.messages import NOTICE, TrainRequest
from wardround.server.rounds.clients import Clients, Request
from wardround.server.rounds.members import Member
from wardround.server.rounds.state import RoundState

if TYPE_CHECKING:
    from wardround.common.wire.arrays import Payload

_MARGIN_SECONDS = 300.0  # what a task may wait at the server before its client has it


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
    ) -> Iterator[tuple[Member, RecordDict | BadAnswer]]:
        """Send the global tensors of `state` to all members, and yield what each answers, in their order.

        One that does not hold the tensors which its task was written against is sent the whole at once.
        """
        timeout = self._settings.strategy.round_timeout_seconds
        deadline = time.monotonic() + timeout
        answers = self._clients.ask(
            self._requests(members, state, number), kind, number, timeout
        )
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, RecordDict) and is_missing_base(answer):
                self.note(member, "")
                request = self._requests([member], state, number)
                (answer,) = self._clients.ask(
                    request, kind, number, max(0.0, deadline - time.monotonic())
                )
            yield (
                member,
                NoAnswer(f"no answer within {timeout:g} s")
                if answer is None
                else answer,
            )

    def tell_refused(self, member: Member, number: int, refusal: BadAnswer) -> None:
        """Tell a client why its answer does not count, if it cannot know."""
        if not isinstance(refusal, NoAnswer):
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
        task = TrainRequest(
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
            packed = pack_requests(task, [member.client for member in group])
            contents |= dict(
                zip((member.node_id for member in group), packed, strict=True)
            )
        return [Request(member.node_id, contents[member.node_id]) for member in members]
