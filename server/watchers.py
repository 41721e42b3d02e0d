"""Who watches a run: the terminal, `wardround status`, and what ends it early."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

from wardround.common.files import write_json
from wardround.common.settings.tree import Settings
from wardround.server.diagnostics.collapse import Collapse, find_collapses, looks_of
from wardround.server.display import display
from wardround.server.record import RoundRecord
from wardround.server.rounds.callbacks import Callback
from wardround.server.run_folder import RunFolder

_KEPT_WARNINGS = 64


class Live(Callback):
    """Which clients have answered the round that is under way, for `wardround status` and `submit`."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._round = 0
        self._waiting: list[str] = []
        self._answered: list[str] = []
        self._since = ""
        self._warnings: deque[str] = deque(maxlen=_KEPT_WARNINGS)

    def before_round(self, round: int, names: Sequence[str]) -> None:
        self._waiting, self._answered = list(names), []
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._round = round
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


class Target(Callback):
    """Ends the run at the first round that reaches `evaluation.target_accuracy`."""

    def __init__(self, folder: RunFolder, target: float | None) -> None:
        self.folder, self.target = folder, target

    def resumed(self, last_round: int) -> str | None:
        reasons = (self._reached(record) for record in self.folder.history())
        return next(filter(None, reasons), None)

    def after_round(self, record: RoundRecord) -> str | None:
        return self._reached(record)

    def _reached(self, record: RoundRecord) -> str | None:
        accuracy = record.accuracy
        if (
            self.target is None
            or record.round == 0
            or accuracy is None
            or accuracy < self.target
        ):
            return None
        return f"accuracy {accuracy:.4f} reached the target {self.target:.4f} in round {record.round}"


class CollapseAlarm(Callback):
    """Says when a run has collapsed, and when that is over; `train.on_collapse=stop` ends the run for it."""

    def __init__(self, folder: RunFolder, settings: Settings) -> None:
        self.settings, self.train, self.title = settings, settings.train, settings.cell
        self.label_names = folder.label_names()
        self._looks = looks_of(folder.history())
        self._told = {
            collapse.alarm(self.label_names, settings) for collapse in self._collapses()
        }

    def resumed(self, last_round: int) -> str | None:
        return self._reason_to_stop()

    def after_round(self, record: RoundRecord) -> str | None:
        self._looks += looks_of([record])
        for collapse in self._collapses():
            text = collapse.alarm(self.label_names, self.settings)
            if text not in self._told:
                display().say(f"{self.title}: {text}")
                self._told.add(text)
        return self._reason_to_stop()

    def _collapses(self) -> tuple[Collapse, ...]:
        return find_collapses(self._looks, self.train.collapse_rounds)

    def _reason_to_stop(self) -> str | None:
        collapses = self._collapses()
        if self.train.on_collapse == "warn" or not collapses or not collapses[-1].is_up:
            return None
        return f"train.on_collapse=stop: {collapses[-1].words(self.label_names)}"


class Progress(Callback):
    """One bar for the rounds, with accuracy and time left; plain lines where there is no terminal."""

    def __init__(self, settings: Settings) -> None:
        self.num_rounds, self.title = settings.num_rounds, settings.cell
        display().start_rounds(self.title, self.num_rounds)

    def resumed(self, last_round: int) -> str | None:
        display().say(f"{self.title}: goes on after round {last_round}")
        display().show_round(last_round, "")
        return None

    def after_update(
        self, round: int, name: str, num_done: int, num_clients: int
    ) -> None:
        display().show_updates(round, num_done, num_clients)

    def after_round(self, record: RoundRecord) -> str | None:
        loss = record.train.loss
        text = f"accuracy {record.accuracy:.4f}" + (
            "" if loss is None else f"  train loss {loss:.4f}"
        )
        display().show_round(record.round, text)
        return None

    def warn(self, text: str) -> None:
        display().say(f"{self.title}: {text}")
