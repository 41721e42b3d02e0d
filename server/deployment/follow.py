"""Shows the rounds of a submitted run until it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from wardround.common.errors import RunFailed
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.wire.refusals import PENDING
from wardround.common.words import pasteable
from wardround.server.deployment import superlink
from wardround.server.deployment.folder import ServerFolder
from wardround.server.deployment.plan import plan_id
from wardround.server.deployment.status import is_held, read_open_round
from wardround.server.deployment.superlink import RunState, SuperLinkError
from wardround.server.diagnostics.collapse import collapses_in
from wardround.server.display import display
from wardround.server.record import RoundRecord, score_text
from wardround.server.run_folder import RunFolder

_LOOK_SECONDS = 0.5
# A question to the SuperLink costs a second of CPU time. News in the run folder show that the
# run goes on, so it is asked less often then.
_ASK_SECONDS = 10.0
_ASK_WITH_NEWS_SECONDS = 30.0
# The run folder shows the end, and no process holds it any more.
_ASK_AT_END_SECONDS = 1.0
_STALL_SECONDS = 60.0
_LOST_SECONDS = 60.0
_WATCHED_FILES = ("status.json", "history.jsonl", "live.json", "approvals.json")


@dataclass(frozen=True)
class RunEnd:
    """The end of a run."""

    is_finished: bool
    reason: str


class RunWatch:
    """Shows what changes in a run folder after the watch was made."""

    def __init__(self, run: RunFolder, settings: Settings) -> None:
        self.run = run
        self._settings = settings
        self._task = task_of(settings)
        self._versions = self._file_versions()
        self._old_status = self._versions["status.json"]
        records = run.history()
        rounds = [record.round for record in records]
        self._last_shown = max(rounds, default=-1)
        texts = self._texts(records)
        self._shown_texts = set(texts)
        display().start_rounds(settings.cell, settings.num_rounds)

    def status(self) -> dict[str, str] | None:
        """Return `state` and `reason` as this run wrote them; None if it has not yet."""
        if self._file_versions()["status.json"] == self._old_status:
            return None
        return self.run.status()

    def look(self) -> bool:
        """Show new rounds, answers and warnings. Returns True if a file has changed."""
        records = self.run.history()
        for record in records:
            if record.round > self._last_shown:
                self._last_shown = record.round
                score = score_text(record, self._task)
                display().show_round(record.round, score)
        for text in self._texts(records):
            if text not in self._shown_texts:
                display().say(f"{self._settings.cell}: {text}")
                self._shown_texts.add(text)
        current = read_open_round(self.run)
        if current is not None:
            num_answered = len(current.answered)
            num_missing = len(current.missing)
            num_sites = num_answered + num_missing
            display().show_updates(current.round, num_answered, num_sites)
        before = self._versions
        self._versions = self._file_versions()
        return self._versions != before

    def _texts(self, records: Sequence[RoundRecord]) -> list[str]:
        """Return the messages about the run so far: open decisions, warnings, collapses."""
        settings = self._settings
        texts = pending_decisions(self.run)
        current = read_open_round(self.run)
        if current is not None:
            texts.extend(current.warnings)
        names = self.run.label_names()
        num_rounds = settings.train.collapse_rounds
        collapses = collapses_in(records, self._task, num_rounds)
        for collapse in collapses:
            alarm = collapse.alarm(names, settings)
            texts.append(alarm)
        return texts

    def _file_versions(self) -> dict[str, int]:
        """Return the time at which each file was last written; 0 if it does not exist."""
        versions = dict.fromkeys(_WATCHED_FILES, 0)
        for name in versions:
            with suppress(FileNotFoundError):
                found = (self.run.path / name).stat()
                versions[name] = found.st_mtime_ns
        return versions


def follow(
    folder: ServerFolder, run_id: str, watch: RunWatch, sites: Sequence[str]
) -> RunEnd:
    """Show the rounds of a run until it ends. No limit of time here ends it.

    If nothing changes for a minute, it says what the run waits for, at growing intervals.

    Raises:
        RunFailed: the SuperLink has not answered for a minute.
    """
    run = watch.run
    asked = time.monotonic()
    answered = asked
    changed = asked
    patience = _STALL_SECONDS
    while True:
        time.sleep(_LOOK_SECONDS)
        if watch.look():
            changed = time.monotonic()
            patience = _STALL_SECONDS
        quiet = time.monotonic() - changed
        if quiet > patience:
            reason = reason_to_wait(folder, run, sites)
            display().say(f"no news for {quiet:.0f} s: {reason}")
            patience = 2 * quiet
        waited = time.monotonic() - asked
        if waited < pause_before_asking(watch, quiet):
            continue
        try:
            state = superlink.run_state(folder, run_id)
            answered = time.monotonic()
            if state.has_ended:
                watch.look()
                return conclude(state, watch.status(), run)
        except SuperLinkError as error:
            silent = time.monotonic() - answered
            if silent > _LOST_SECONDS:
                raise RunFailed(
                    f"the SuperLink does not answer ({error}). Whole rounds are safe in "
                    f"'{run.path}'. To "
                    "continue: wardround server up, then wardround submit --resume "
                    f"{pasteable(run.path)}"
                ) from None
        asked = time.monotonic()


def pause_before_asking(watch: RunWatch, quiet: float) -> float:
    """Return the seconds between two questions to the SuperLink.

    Args:
        quiet: seconds since the run folder changed.
    """
    status = watch.status()
    is_over = status is not None and status["state"] != "running"
    if is_over and not is_held(watch.run):
        return _ASK_AT_END_SECONDS
    if quiet < _ASK_SECONDS:
        return _ASK_WITH_NEWS_SECONDS
    return _ASK_SECONDS


def conclude(state: RunState, status: dict[str, str] | None, run: RunFolder) -> RunEnd:
    """Judge the end of a run by the SuperLink and by its folder.

    If the process could not write its end into the folder, this writes it.

    Args:
        status: the status that this run wrote into its folder; None if it wrote none.
    """
    if status is None:
        if state.status == "finished:completed":
            reason = (
                f"it ended, but wrote no run folder at '{run.path}' on this machine"
            )
        else:
            reason = f"it ended as {state.status} before its first round"
            reason = state.details or reason
        return RunEnd(False, reason)
    if status["state"] == "running":
        if state.status == "finished:stopped":
            status = {"state": "stopped", "reason": "stopped by the coordinator"}
        else:
            reason = f"the server app ended without a message ({state.status})"
            status = {"state": "failed", "reason": state.details or reason}
        run.write_status(**status)
    if status["state"] == "finished" and state.status == "finished:completed":
        return RunEnd(True, status["reason"])
    reason = status["reason"] or state.details or state.status
    reason = reason.rstrip(".")
    step = f"To continue from the last whole round: wardround submit --resume {pasteable(run.path)}"
    return RunEnd(False, f"{reason}. {step}")


def pending_decisions(run: RunFolder) -> list[str]:
    """Return a line that names the sites that have not decided on the plan; empty if all have."""
    undecided = [
        name
        for name, decision in run.approvals().items()
        if decision["code"] == PENDING
    ]
    if not undecided:
        return []
    plan = plan_id(run.path)[:12]
    return [f"plan {plan} waits for the decision of {', '.join(undecided)}"]


def reason_to_wait(folder: ServerFolder, run: RunFolder, sites: Sequence[str]) -> str:
    """Return the reason why a run makes no progress."""
    pending = pending_decisions(run)
    if pending:
        return pending[0]
    current = read_open_round(run)
    is_running = run.status()["state"] == "running"
    if current is not None and current.missing and is_running:
        return f"round {current.round} waits for {', '.join(current.missing)}"
    try:
        states = superlink.fleet_states(folder)
    except SuperLinkError as error:
        return str(error)
    absent = []
    for name in sites:
        state = states.get(name)
        status = state.status if state else "unknown"
        if status == "online":
            continue
        absent.append(f"{name} ({status})")
    if absent:
        return f"not online: {', '.join(absent)}"
    return "all sites are online; the server is at work"
