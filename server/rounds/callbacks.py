"""What the round loop tells of, and who keeps it: checkpoints, history, the best model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wardround.common.files import Writer
from wardround.common.model.flat import Layout
from wardround.server.record import RoundRecord, best_of
from wardround.server.rounds.server_step import ServerStep
from wardround.server.run_folder import Checkpoint, RunFolder

if TYPE_CHECKING:
    from torch import Tensor


class Callback:
    """Does nothing; watchers override what they care about."""

    def resumed(self, last_round: int) -> str | None:
        """The run goes on after `last_round`. A returned text ends it, for that reason."""
        return None

    def before_round(self, round: int, names: Sequence[str]) -> None:
        """The tensors go out to these clients."""

    def after_update(
        self, round: int, name: str, num_done: int, num_clients: int
    ) -> None:
        """One more client's update of this round is in the mean."""

    def after_average(self, record: RoundRecord, tensors: Tensor) -> None:
        """New global tensors, (P,) fp32, which hold until the next call. The record's `test` may be None."""

    def after_round(self, record: RoundRecord) -> str | None:
        """A round is whole and measured. A returned text ends the run, for that reason."""
        return None

    def warn(self, text: str) -> None:
        """Something a person should know."""


class Checkpoints(Callback):
    """The global tensors, the server's own state and the record of every round; the newest two are kept."""

    def __init__(
        self,
        folder: RunFolder,
        layout: Layout,
        server_step: ServerStep,
        writer: Writer,
        *,
        comes_first: bool,
    ) -> None:
        """Args:
        writer: writes while the run goes on; give `History` the same, and place it after this.
        comes_first: a round is on the disk before the next one is sent out. Real sites answer a round
            once: a server that was killed must never have to ask for one that they have left behind.
        """
        self.folder, self.layout, self.server_step = folder, layout, server_step
        self.writer, self.comes_first = writer, comes_first

    def before_round(self, round: int, names: Sequence[str]) -> None:
        if self.comes_first:
            self.writer.wait()

    def after_average(self, record: RoundRecord, tensors: Tensor) -> None:
        self.writer.wait()
        # The next round changes the state, and the record of a model that the sites have yet to measure.
        state = {
            name: self.layout.views(kept.clone())
            for name, kept in self.server_step.state.items()
        }
        checkpoint = Checkpoint(
            record.model_copy(deep=True), self.layout.views(tensors), state
        )
        self.writer.write(self.folder.save_checkpoint, checkpoint)


class History(Callback):
    """One line a round in `history.jsonl`; it stands there only once the round's checkpoint does."""

    def __init__(self, folder: RunFolder, writer: Writer) -> None:
        self.folder, self.writer = folder, writer

    def after_round(self, record: RoundRecord) -> str | None:
        self.writer.write(self.folder.append_history, record)
        return None


class Best(Callback):
    """Keeps the model that is best on the validation part, and ends the run when none has been for long."""

    def __init__(self, folder: RunFolder, patience: int | None, writer: Writer) -> None:
        """Args: writer: that of `Checkpoints` and `History`, after which this is placed."""
        self.folder, self.patience, self.writer = folder, patience, writer
        self._best = best_of(folder.history())

    def resumed(self, last_round: int) -> str | None:
        kept = self.folder.load_best()
        if self._best is not None and (
            kept is None or kept.record.round != self._best.round
        ):
            self.folder.keep_best(self._best.round)  # the run was killed before it was
        return self._reason_to_stop(last_round)

    def after_round(self, record: RoundRecord) -> str | None:
        self._best = best_of(filter(None, (self._best, record)))
        if self._best is record:
            self.writer.write(self.folder.keep_best, record.round)
        return self._reason_to_stop(record.round)

    def _reason_to_stop(self, last_round: int) -> str | None:
        if (
            self.patience is None
            or self._best is None
            or last_round - self._best.round < self.patience
        ):
            return None
        return f"no better model since round {self._best.round} (evaluation.patience is {self.patience})"
