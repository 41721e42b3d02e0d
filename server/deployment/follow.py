"""Follow a submitted run: its rounds from the run folder, its end from the SuperLink."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.settings import Settings
from server.deployment import superlink
from server.deployment.folder import ServerFolder
from server.deployment.status import collapses_of, live_of
from server.deployment.superlink import RunState, SuperLinkError
from server.display import display
from server.record import RoundRecord
from server.rounds.clients import RunFailed
from server.run_folder import RunFolder

_LOOK_SECONDS = 0.5
_ASK_SECONDS = 10.0
# Asking takes a second of a processor: more often only once the run folder says that it is over.
_ASK_AT_END_SECONDS = 1.0
_STALL_SECONDS = 60.0
_LOST_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    is_finished: bool
    reason: str


class Watch:
    """What was seen of a run folder so far; only what changes after `__init__` counts."""

    def __init__(self, run: RunFolder, settings: Settings) -> None:
        self.run, self._settings = run, settings
        self._stale = _written_at(run.path / "status.json")
        records = run.history()
        self._shown = max((record.round for record in records), default=-1)
        self._seen = self._marks()
        self._told = set(self._texts(records))
        display().start_rounds(settings.cell, settings.num_rounds)

    def status(self) -> dict[str, str] | None:
        """`state` and `reason` as this run wrote them; None before it did."""
        if _written_at(self.run.path / "status.json") == self._stale:
            return None
        return self.run.status()

    def look(self) -> bool:
        """Show new rounds and answers; returns whether there was any news."""
        records = self.run.history()
        for record in records:
            if record.round > self._shown:
                self._shown = record.round
                display().show_round(self._shown, f"accuracy {record.accuracy:.4f}")
        for text in self._texts(records):
            if text not in self._told:
                display().say(f"{self._settings.cell}: {text}")
                self._told.add(text)
        live = live_of(self.run)
        if live is not None:
            display().show_updates(live.round, len(live.answered), len(live.answered) + len(live.missing))
        before, self._seen = self._seen, self._marks()
        return before != self._seen

    def _texts(self, records: Sequence[RoundRecord]) -> list[str]:
        """What a person should know of the run so far."""
        live = live_of(self.run)
        collapses = [collapse["words"] for collapse in collapses_of(self.run, self._settings, records)]
        return [*(live.warnings if live else ()), *collapses]

    def _marks(self) -> list[int]:
        return [_written_at(self.run.path / name) for name in ("status.json", "history.jsonl", "live.json")]


def follow(folder: ServerFolder, run_id: str, watch: Watch, sites: Sequence[str]) -> Outcome:
    """Show the rounds of a run until it ends; only its own bounds end it.

    Raises:
        RunFailed: the SuperLink has not answered for a minute.
    """
    run = watch.run
    stalls = Stalls(lambda: waiting_for(folder, run, sites))
    asked = answered = time.monotonic()
    while True:
        time.sleep(_LOOK_SECONDS)
        stalls.tell(watch.look())
        status = watch.status()
        is_over = status is not None and status["state"] != "running"
        if time.monotonic() - asked < (_ASK_AT_END_SECONDS if is_over else _ASK_SECONDS):
            continue
        try:
            state = superlink.run_state(folder, run_id)
            answered = time.monotonic()
        except SuperLinkError as error:
            if time.monotonic() - answered > _LOST_SECONDS:
                raise RunFailed(_lost(error, run)) from None
        else:
            if state.has_ended:
                watch.look()
                return conclude(state, watch.status(), run)
        asked = time.monotonic()


def conclude(state: RunState, status: dict[str, str] | None, run: RunFolder) -> Outcome:
    """Judge by both witnesses, and correct a run folder whose process could not write its end.

    Args:
        status: what this run wrote into its folder; None if it wrote nothing.
    """
    again = f"To go on from the last whole round: wardround submit --resume {run.path}"
    if status is None:
        if state.status == "finished:completed":
            return Outcome(False, f"it ended, but wrote no run folder at '{run.path}' on this machine")
        return Outcome(False, state.details or f"it ended as {state.status} before its first round")
    if status["state"] == "running":
        ending = "stopped" if state.status == "finished:stopped" else "failed"
        reason = state.details or f"the server app ended without a word ({state.status})"
        status = {"state": ending, "reason": reason if ending == "failed" else "stopped by the coordinator"}
        run.write_status(status["state"], status["reason"])
    if status["state"] == "finished" and state.status == "finished:completed":
        return Outcome(True, status["reason"])
    reason = status["reason"] or state.details or state.status
    return Outcome(False, f"{reason.rstrip('.')}. {again}")


class Stalls:
    """Says what a run waits for when nothing has happened for a while, ever more rarely."""

    def __init__(self, waiting_for: Callable[[], str]) -> None:
        self._waiting_for = waiting_for
        self._since = time.monotonic()
        self._patience = _STALL_SECONDS

    def tell(self, is_news: bool) -> None:
        """Call often; `is_news` is whether something happened since the last call."""
        quiet = time.monotonic() - self._since
        if is_news:
            self._since, self._patience = time.monotonic(), _STALL_SECONDS
        elif quiet > self._patience:
            display().say(f"no news for {quiet:.0f} s: {self._waiting_for()}")
            self._patience = 2 * quiet


def waiting_for(folder: ServerFolder, run: RunFolder, sites: Sequence[str]) -> str:
    """What keeps a run, in words."""
    live = live_of(run)
    if live is not None and live.missing and run.status()["state"] == "running":
        return f"round {live.round} waits for {', '.join(live.missing)}"
    try:
        states = superlink.fleet_states(folder)
    except SuperLinkError as error:
        return str(error)
    told = {name: states.get(name) for name in sites}
    absent = [
        f"{name} ({state.status if state else 'unknown'})"
        for name, state in told.items()
        if state is None or state.status != "online"
    ]
    return f"not online: {', '.join(absent)}" if absent else "all sites are online; the server is at work"


def _lost(error: SuperLinkError, run: RunFolder) -> str:
    return (
        f"the SuperLink is lost ({error}). Whole rounds are safe in '{run.path}'; go on with: "
        f"wardround server up, then wardround submit --resume {run.path}"
    )


def _written_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
