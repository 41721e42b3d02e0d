"""What each client is sent: the whole global tensors, or the step from those that it still holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import RecordDict

from common.messages import Task, pack_tasks
from common.settings import Settings
from common.sharing import Layout
from common.transforms import EXACT, WHOLE, encode, whole
from server.exchange import Request
from server.records import Standing
from server.roster import Member


class Tasks:
    """Makes the tasks of each round, and remembers who holds what."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._settings, self._layout = settings, layout
        self._holds: dict[int, str] = {}
        """The version that a node said it keeps, by node id."""
        self.num_bytes = 0
        """Of all tensors sent since this was set to 0, as they travelled."""

    def note(self, member: Member, version: str) -> None:
        """A client said which version it keeps; empty for none."""
        self._holds[member.node_id] = version

    def add_step(self, standing: Standing, before: Standing) -> None:
        """Write the tensors against those before, if any client still holds these."""
        if before.version in self._holds.values():
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
            held = self._holds.get(member.node_id, "")
            groups[held if held in groups else ""].append(member)
        contents: dict[int, RecordDict] = {}
        for task in tasks:
            group = groups[task.base]
            self.num_bytes += task.payload.num_bytes * len(group)
            packed = pack_tasks(task, [member.client for member in group])
            contents |= dict(zip((member.node_id for member in group), packed, strict=True))
        return [Request(member.node_id, contents[member.node_id]) for member in members]
