"""What each client is sent: the whole global tensors, or the step from those that it still holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from flwr.app import RecordDict

from common.model.flat import Layout
from common.settings import Settings
from common.wire.forms import EXACT, WHOLE, encode, whole
from common.wire.messages import KEPT_SECONDS, Task, pack_tasks
from server.rounds.clients import Request
from server.rounds.record import Standing
from server.rounds.roster import Member

_MARGIN_SECONDS = 300.0  # what a task may wait at the server before its client has it


class Tasks:
    """Makes the tasks of each round, and remembers who holds what."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings, self._layout = settings, layout
        self._holds: dict[int, tuple[str, float]] = {}
        """The version that a node said it keeps, and until when, by node id."""
        self.num_bytes = 0
        """Of all tensors sent since this was set to 0, as they travelled."""

    def note(self, member: Member, version: str, answered: float = 0.0) -> None:
        """A client said which version it keeps; empty for none.

        Args:
            answered: when, by `time.monotonic()`. Its answer may have waited long for the others', and by
                then the client may keep nothing any more: asking it once more costs the round its time.
        """
        self._holds[member.node_id] = (version, answered + KEPT_SECONDS - _MARGIN_SECONDS)

    def add_step(self, standing: Standing, before: Standing) -> None:
        """Write the tensors against those before, if any client still holds these."""
        if before.version in {version for version, _ in self._holds.values()}:
            step = encode(EXACT, standing.tensors.numpy(), before.tensors.numpy())
            if step.form != WHOLE:
                standing.step, standing.step_base = step, before.version

    def requests(self, members: Sequence[Member], number: int, standing: Standing) -> list[Request]:
        """A task for each member, in their order; all with the same tensors share one record of them."""
        tensors = whole(standing.tensors.numpy())
        task = Task(number, self._layout.digest, self._settings.for_sites(), tensors, standing.version)
        tasks = [task]
        if standing.step is not None:
            tasks.append(replace(task, payload=standing.step, base=standing.step_base))
        groups: dict[str, list[Member]] = {task.base: [] for task in tasks}
        for member in members:
            held, until = self._holds.get(member.node_id, ("", 0.0))
            groups[held if held in groups and time.monotonic() < until else ""].append(member)
        contents: dict[int, RecordDict] = {}
        for task in tasks:
            group = groups[task.base]
            self.num_bytes += task.payload.num_bytes * len(group)
            packed = pack_tasks(task, [member.client for member in group])
            contents |= dict(zip((member.node_id for member in group), packed, strict=True))
        return [Request(member.node_id, contents[member.node_id]) for member in members]
