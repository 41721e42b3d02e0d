"""Callbacks that follow a run: the terminal, `wardround status`, and reasons to end early."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from wardround.common.files import write_json
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import merit
from wardround.server.diagnostics.collapse import (
    Collapse,
    find_collapses,
    scored_rounds,
)
from wardround.server.display import display
from wardround.server.record import RoundRecord, best_of, score_text
from wardround.server.rounds.callbacks import Callback
from wardround.server.run_folder import RunFolder

_KEPT_WARNINGS = 64


class Live(Callback):
    """Writes `live.json`, from which `wardround status` and `submit` read the current round."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._round = 0
        self._waiting: list[str] = []
        self._answered: list[str] = []
        self._since = ""
        self._warnings: deque[str] = deque(maxlen=_KEPT_WARNINGS)

    def before_round(self, round: int, names: Sequence[str]) -> None:
        self._round = round
        self._waiting = list(names)
        self._answered = []
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._write()

    def after_update(
        self, round: int, name: str, num_done: int, num_clients: int
    ) -> None:
        self._waiting.remove(name)
        self._answered.append(name)
        self._write()

    def warn(self, text: str) -> None:
        self._warnings.append(text)
        self._write()

    def _write(self) -> None:
        content = {
            "round": self._round,
            "answered": self._answered,
            "waiting_for": self._waiting,
            "since": self._since,
            "warnings": list(self._warnings),
        }
        write_json(self.folder.path / "live.json", content)


class Patience(Callback):
    """Ends the run after `evaluation.patience` rounds without a better model."""

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self.patience = settings.evaluation.patience
        self._task = task_of(settings)
        self._best = best_of(folder.history(), self._task)

    def resumed(self, last_round: int) -> str | None:
        return self._reason_to_stop(last_round)

    def after_round(self, record: RoundRecord) -> str | None:
        self._best = best_of(filter(None, (self._best, record)), self._task)
        return self._reason_to_stop(record.round)

    def _reason_to_stop(self, last_round: int) -> str | None:
        if self.patience is None or self._best is None:
            return None
        best_round = self._best.round
        if last_round - best_round < self.patience:
            return None
        return (
            f"no better model since round {best_round} (evaluation.patience is "
            f"{self.patience})"
        )


class Target(Callback):
    """Ends the run at the first round that reaches `evaluation.target_accuracy`."""

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self.folder = folder
        self.target = settings.evaluation.target_accuracy
        self._task = task_of(settings)

    def resumed(self, last_round: int) -> str | None:
        reasons = map(self.after_round, self.folder.history())
        return next(filter(None, reasons), None)

    def after_round(self, record: RoundRecord) -> str | None:
        score = record.score(self._task)
        if self.target is None or score is None or record.round == 0:
            return None
        if merit(self._task, score) < merit(self._task, self.target):
            return None
        words = self._task.metric_words[self._task.score]
        return (
            f"{words} {score:.4f} reached the target {self.target:.4f} in round "
            f"{record.round}"
        )


class CollapseAlarm(Callback):
    """Prints when a run has collapsed and when that is over.

    With `train.on_collapse=stop` a collapse ends the run.
    """

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self.settings = settings
        self.train = settings.train
        self.label_names = folder.label_names()
        self._task = task_of(settings)
        self._scored = scored_rounds(folder.history(), self._task)
        self._printed = {self._alarm(collapse) for collapse in self._collapses()}

    def resumed(self, last_round: int) -> str | None:
        return self._reason_to_stop()

    def after_round(self, record: RoundRecord) -> str | None:
        self._scored += scored_rounds([record], self._task)
        for collapse in self._collapses():
            text = self._alarm(collapse)
            if text not in self._printed:
                display().say(f"{self.settings.cell}: {text}")
                self._printed.add(text)
        return self._reason_to_stop()

    def _alarm(self, collapse: Collapse) -> str:
        return collapse.alarm(self.label_names, self.settings)

    def _collapses(self) -> tuple[Collapse, ...]:
        return find_collapses(self._scored, self.train.collapse_rounds)

    def _reason_to_stop(self) -> str | None:
        collapses = self._collapses()
        if self.train.on_collapse == "warn" or not collapses or not collapses[-1].is_up:
            return None
        return f"train.on_collapse=stop: {collapses[-1].words(self.label_names)}"


class Progress(Callback):
    """Shows the rounds as one bar with the score and time left, or as lines without a terminal."""

    def __init__(self, settings: Settings) -> None:
        self.title = settings.cell
        self._task = task_of(settings)
        display().start_rounds(self.title, settings.num_rounds)

    def resumed(self, last_round: int) -> str | None:
        display().say(f"{self.title}: continues after round {last_round}")
        display().show_round(last_round, "")
        return None

    def after_update(
        self, round: int, name: str, num_done: int, num_clients: int
    ) -> None:
        display().show_updates(round, num_done, num_clients)

    def after_round(self, record: RoundRecord) -> str | None:
        loss = record.train.loss
        text = score_text(record, self._task)
        if loss is not None:
            text += f"  train loss {loss:.4f}"
        display().show_round(record.round, text)
        return None

    def warn(self, text: str) -> None:
        display().say(f"{self.title}: {text}")
