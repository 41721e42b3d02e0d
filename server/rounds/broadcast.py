"""Sends the global tensors to the clients of a round, and returns their answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flwr.app import RecordDict

from wardround.common.errors import BadAnswer, NoAnswer
from wardround.common.settings.tree import Settings
from wardround.common.wire.arrays import Payload
from wardround.common.wire.codec import is_missing_base, pack_notice, pack_requests
from wardround.common.wire.deadlines import KEPT_SECONDS
from wardround.common.wire.forms import EXACT, WHOLE, encode, whole
from wardround.common.wire.messages import NOTICE, TrainRequest
from wardround.server.rounds.clients import Clients, Request
from wardround.server.rounds.members import Member
from wardround.server.rounds.state import RoundState

_MARGIN_SECONDS = 300.0
"""The time that a task may wait at the server before its client receives it."""


class Broadcast:
    """Sends the tensors whole, or as the difference from tensors that a client still holds."""

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients = clients
        self._settings = settings
        self._holds: dict[int, tuple[str, float]] = {}
        """By node id: the version of the model that the node holds, and the end of that time."""
        self.bytes_sent = 0
        """Bytes of all tensors as they were sent, since this was set to 0."""

    def ask(
        self,
        members: Sequence[Member],
        state: RoundState,
        kind: str,
        number: int,
        mean_steps: float = 0.0,
    ) -> Iterator[tuple[Member, RecordDict | BadAnswer]]:
        """Send the global tensors of `state` to all members; yield each answer, in their order.

        A member that does not hold the base of its difference receives the whole
        tensors at once.

        Args:
            kind: the type of the message.
            number: the round that the messages belong to.
            mean_steps: as `TrainRequest.mean_steps`.
        """
        timeout = self._settings.strategy.round_timeout_seconds
        deadline = time.monotonic() + timeout
        requests = self._requests(members, state, number, mean_steps)
        answers = self._clients.ask(requests, kind, number, timeout)
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, RecordDict) and is_missing_base(answer):
                self.note_held(member, "")
                again = self._requests([member], state, number, mean_steps)
                seconds_left = max(0.0, deadline - time.monotonic())
                (answer,) = self._clients.ask(again, kind, number, seconds_left)
            if answer is None:
                answer = NoAnswer(f"no answer within {timeout:g} s")
            yield member, answer

    def tell_refused(self, member: Member, number: int, refusal: BadAnswer) -> None:
        """Send a client the reason why its answer does not count, unless it gave that reason."""
        if not isinstance(refusal, NoAnswer):
            notice = pack_notice(f"round {number}: {refusal}")
            self._clients.tell(Request(member.node_id, notice), NOTICE, number)

    def note_held(self, member: Member, version: str, answered: float = 0.0) -> None:
        """Note the version of the model that a client holds; empty if it holds no model.

        Args:
            answered: time of its answer, by `time.monotonic()`. If that was long ago, because
                other answers were read first, the client may hold nothing any more. A
                second request would cost the round time.
        """
        until = answered + KEPT_SECONDS - _MARGIN_SECONDS
        self._holds[member.node_id] = (version, until)

    def step_from(
        self, before: RoundState, state: RoundState
    ) -> tuple[str, Payload] | None:
        """Return `RoundState.step` of `state`. The state before it is `before`."""
        held = {version for version, _ in self._holds.values()}
        if before.version not in held:
            return None
        step = encode(EXACT, state.tensors.numpy(), before.tensors.numpy())
        if step.form == WHOLE:
            return None
        return before.version, step

    def _requests(
        self,
        members: Sequence[Member],
        state: RoundState,
        number: int,
        mean_steps: float,
    ) -> list[Request]:
        """One task for each member, in their order. Equal tensors share one record."""
        has_plan = self._clients.approve_plans
        task = TrainRequest(
            round=number,
            layout=state.layout.digest,
            payload=whole(state.tensors.numpy()),
            settings=None if has_plan else self._settings.for_sites(),
            version=state.version,
            mean_steps=mean_steps,
        )
        tasks = {task.base: task}
        if state.step is not None:
            base, payload = state.step
            tasks[base] = replace(task, payload=payload, base=base)
        groups: dict[str, list[Member]] = {base: [] for base in tasks}
        for member in members:
            base = self._base_for(member, groups)
            groups[base].append(member)
        contents: dict[int, RecordDict] = {}
        for base, group in groups.items():
            task = tasks[base]
            self.bytes_sent += task.payload.num_bytes * len(group)
            packed = pack_requests(task, [member.client for member in group])
            for member, content in zip(group, packed, strict=True):
                contents[member.node_id] = content
        return [Request(member.node_id, contents[member.node_id]) for member in members]

    def _base_for(self, member: Member, bases: dict[str, list[Member]]) -> str:
        held, until = self._holds.get(member.node_id, ("", 0.0))
        is_kept = time.monotonic() < until
        return held if is_kept and held in bases else ""
