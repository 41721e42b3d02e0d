"""Writes the files of a run: checkpoints, history and the best model, always in this order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wardround.common.files import Writer
from wardround.common.model.flat import Layout
from wardround.common.tasks.task import Task
from wardround.server.record import RoundRecord, best_of
from wardround.server.rounds.callbacks import Callback
from wardround.server.rounds.server_step import ServerStep
from wardround.server.run_folder import Checkpoint, RunFolder


class Recorder(Callback):
    """Records every round while the next rounds run.

    One writer does one write after the other. So a round has its line in
    `history.jsonl` only if its checkpoint exists, and the best model is copied from a
    checkpoint that exists.
    """

    def __init__(
        self,
        folder: RunFolder,
        layout: Layout,
        server_step: ServerStep,
        writer: Writer,
        task: Task,
        *,
        waits_for_checkpoint: bool,
    ) -> None:
        """Args:
        task: judges which model is the best.
        waits_for_checkpoint: True if a checkpoint must be on the disk before the next round
            is sent. Real sites answer a round once. So a server that was killed must
            never need answers to an earlier round again.
        """
        self._folder = folder
        self._layout = layout
        self._server_step = server_step
        self._writer = writer
        self._waits_for_checkpoint = waits_for_checkpoint
        self._task = task
        self._best = best_of(folder.history(), task)

    def resumed(self, last_round: int) -> str | None:
        if self._best is None:
            return None
        kept = self._folder.load_best()
        if kept is None or kept.record.round != self._best.round:
            # The run was killed between the line in the history and the copy.
            self._folder.keep_best(self._best.round)
        return None

    def before_round(self, round: int, names: Sequence[str]) -> None:
        if self._waits_for_checkpoint:
            self._writer.wait()

    def after_average(self, record: RoundRecord, tensors: Tensor) -> None:
        self._writer.wait()
        # Copies, since the next round changes the server's state, and the record of a
        # model that the sites have not measured yet.
        state = {
            name: self._layout.views(kept.clone())
            for name, kept in self._server_step.state.items()
        }
        record = record.model_copy(deep=True)
        checkpoint = Checkpoint(record, self._layout.views(tensors), state)
        self._writer.write(self._folder.save_checkpoint, checkpoint)

    def after_round(self, record: RoundRecord) -> str | None:
        self._writer.write(self._folder.append_history, record)
        self._keep_if_best(record)
        return None

    def _keep_if_best(self, record: RoundRecord) -> None:
        self._best = best_of(filter(None, (self._best, record)), self._task)
        if self._best is record:
            self._writer.write(self._folder.keep_best, record.round)
