"""Where a run stands, told from its files and by the SuperLink: once, or until it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wardround.common.personal import PersonalRecord
from wardround.common.settings import Settings
from wardround.common.wire.messages import PENDING
from wardround.common.words import cleaned, printable
from wardround.server.deployment import superlink
from wardround.server.deployment.folder import ServerFolder
from wardround.server.deployment.plan import plan_id
from wardround.server.deployment.superlink import NodeState, RunState, SuperLinkError
from wardround.server.diagnostics.collapse import find_collapses, looks_of
from wardround.server.display import display
from wardround.server.record import RoundRecord, best_of
from wardround.server.rounds.clients import RunFailed
from wardround.server.run_folder import RunFolder

_LOOK_SECONDS = 0.5
_ASK_SECONDS = 10.0
# Asking takes a second of a processor: more often only once the run folder says that it is over.
_ASK_AT_END_SECONDS = 1.0
_STALL_SECONDS = 60.0
_LOST_SECONDS = 60.0


@dataclass(frozen=True)
class Live:
    """The round that is under way."""

    round: int
    answered: tuple[str, ...]
    missing: Mapping[str, float]
    """Seconds since each site that has not answered was asked."""
    warnings: tuple[str, ...] = ()
    """The newest of the whole run: who was left out of which round, and why."""


@dataclass(frozen=True)
class Standing:
    """Everything `wardround status` tells. As JSON its fields are stable."""

    run_dir: str
    cell: str | None
    state: str
    """`pending`, `running`, `finished`, `failed`, `stopped`, or `interrupted` (nobody runs it)."""
    reason: str
    round: int | None
    """The last whole round that was measured."""
    num_rounds: int | None
    accuracy: float | None
    rounds: tuple[Mapping[str, Any], ...]
    """`round`, `accuracy`, `loss` and `seconds` of each."""
    best: Mapping[str, Any] | None
    """`round`, `accuracy` and `validation_accuracy` of the best model; None where none is chosen."""
    collapses: tuple[Mapping[str, Any], ...]
    """`round`, `is_up` and `words` of each flag."""
    live: Live | None
    sites: Mapping[str, Mapping[str, Any]] | None
    """`status`, `online_seconds`, `offline_at`, `refused` (calls by reason) and `max_examples` of each
    registered site; None if nobody could be asked."""
    superlink: str | None
    """Why the sites are not known."""
    plan: str
    """SHA-256 of the plan that its sites decide on; empty where there is none."""
    approvals: Mapping[str, Mapping[str, str]]
    """What each site that was asked said to the plan: `code` (empty where it takes part) and `words`."""
    refused: Mapping[str, Mapping[str, int]]
    """How many answers of each site did not count in this run, by reason."""
    personal: PersonalRecord | None
    """What the clients of a simulation made of its model, as in `personal.json`; None where nothing yet."""
    next_step: str

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=2, default=PersonalRecord.model_dump)

    def to_text(self) -> str:
        """The same for people."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        loader = FileSystemLoader(Path(__file__).parent)
        templates = Environment(
            loader=loader,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters["printable"] = printable
        told = _printable(asdict(self) | {"personal": None})
        # What a person types is shown as it is.
        told |= {"personal": self.personal, "next_step": cleaned(self.next_step)}
        return templates.get_template("status.txt.j2").render(told).rstrip("\n")


def _printable(told: Any) -> Any:
    """The same with every word in it on one line: sites wrote some, and a run folder may be another's."""
    if isinstance(told, str):
        return printable(told, None)
    if isinstance(told, Mapping):
        return {_printable(key): _printable(value) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return type(told)(map(_printable, told))
    return told


def folder_and_run(
    run_dir: Path | None, folder_path: Path
) -> tuple[RunFolder, ServerFolder | None]:
    """What `wardround status [RUN_DIR]` is about: without a run folder, the run submitted last.

    Raises:
        ValueError: there is neither.
    """
    folder = (
        ServerFolder(folder_path) if (folder_path / "server.yaml").exists() else None
    )
    if run_dir is None:
        last = folder.last_run() if folder else None
        if last is None:
            where = (
                f"'{folder_path}' has no run yet"
                if folder
                else f"'{folder_path}' is no server folder"
            )
            raise ValueError(
                f"{where}. Name a run folder: wardround status RUN_DIR, or a server folder with --dir."
            )
        return RunFolder(Path(last["run_dir"])), folder
    if not run_dir.is_dir():
        raise ValueError(
            f"'{run_dir}' is no folder. Give the run folder that `wardround submit` named."
        )
    return RunFolder(run_dir), folder


def standing_of(
    run: RunFolder, folder: ServerFolder | None, now: datetime | None = None
) -> Standing:
    """Read the files of `run` and ask the SuperLink of `folder`, if there is one.

    Raises:
        ValueError: the run folder's files are not what they should be.
    """
    settings, status, records = run.settings(), run.status(), run.history()
    state = status["state"]
    if state == "running" and not is_held(run):
        state = "interrupted"
    sites, trouble = _ask_sites(folder) if folder else (None, None)
    goes_on = (
        state in ("failed", "stopped", "interrupted")
        and settings
        and not settings.engine.is_simulated
    )
    return Standing(
        run_dir=str(run.path),
        cell=settings.cell if settings else None,
        state=state,
        reason=status["reason"],
        round=records[-1].round if records else None,
        num_rounds=settings.num_rounds if settings else None,
        accuracy=records[-1].accuracy if records else None,
        rounds=tuple(
            {
                "round": r.round,
                "accuracy": r.accuracy,
                "loss": r.train.loss,
                "seconds": r.seconds.total,
            }
            for r in records
        ),
        best=best_told(records),
        collapses=collapses_of(run, settings, records) if settings else (),
        live=live_of(run, now) if state == "running" else None,
        sites=sites,
        superlink=trouble,
        plan=plan_id(run.path),
        approvals=run.approvals(),
        refused=run.refused(),
        personal=PersonalRecord.read(run.path),
        next_step=f"wardround submit --resume {run.path}" if goes_on else "",
    )


def _ask_sites(
    folder: ServerFolder,
) -> tuple[dict[str, dict[str, Any]] | None, str | None]:
    """State of every registered site, or why it is not known."""
    try:
        states = superlink.fleet_states(folder)
    except SuperLinkError as error:
        return None, str(error)
    unknown = NodeState("registered", 0.0, "", {})
    return {
        name: asdict(states.get(name, unknown)) | {"max_examples": site.max_examples}
        for name, site in folder.sites().items()
    }, None


def live_of(run: RunFolder, now: datetime | None = None) -> Live | None:
    """The round under way as the server app last wrote it; None where there is none."""
    try:
        read = json.loads((run.path / "live.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    waited = (
        (now or datetime.now(UTC)) - datetime.fromisoformat(read["since"])
    ).total_seconds()
    missing = dict.fromkeys(read["waiting_for"], max(0.0, waited))
    return Live(
        read["round"], tuple(read["answered"]), missing, tuple(read["warnings"])
    )


def best_told(records: Sequence[RoundRecord]) -> dict[str, Any] | None:
    """The round with the best model on the validation part; None where there is none."""
    best = best_of(records)
    if best is None or best.validation is None:
        return None
    return {
        "round": best.round,
        "accuracy": best.accuracy,
        "validation_accuracy": best.validation.accuracy,
    }


def collapses_of(
    run: RunFolder, settings: Settings, records: Sequence[RoundRecord]
) -> tuple[dict[str, Any], ...]:
    """Every flag of these rounds: the round it was raised in, whether it is up, a line for people."""
    names, found = (
        run.label_names(),
        find_collapses(looks_of(records), settings.train.collapse_rounds),
    )
    return tuple(
        {"round": flag.round, "is_up": flag.is_up, "words": flag.words(names)}
        for flag in found
    )


def is_held(run: RunFolder) -> bool:
    """Whether a process runs in the folder."""
    file = run.path / ".lock"
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except (Timeout, OSError):
        return True


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    is_finished: bool
    reason: str


class Watch:
    """What was seen of a run folder so far; only what changes after `__init__` counts."""

    def __init__(self, run: RunFolder, settings: Settings) -> None:
        self.run, self._settings = run, settings
        self._seen = self._marks()
        self._stale = self._seen["status.json"]
        records = run.history()
        self._shown = max((record.round for record in records), default=-1)
        self._told = set(self._texts(records))
        display().start_rounds(settings.cell, settings.num_rounds)

    def status(self) -> dict[str, str] | None:
        """`state` and `reason` as this run wrote them; None before it did."""
        return (
            None if self._marks()["status.json"] == self._stale else self.run.status()
        )

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
            display().show_updates(
                live.round, len(live.answered), len(live.answered) + len(live.missing)
            )
        before, self._seen = self._seen, self._marks()
        return before != self._seen

    def _texts(self, records: Sequence[RoundRecord]) -> list[str]:
        """What a person should know of the run so far."""
        live = live_of(self.run)
        names, settings = self.run.label_names(), self._settings
        found = find_collapses(looks_of(records), settings.train.collapse_rounds)
        collapses = [collapse.alarm(names, settings) for collapse in found]
        return [*awaited_by(self.run), *(live.warnings if live else ()), *collapses]

    def _marks(self) -> dict[str, int]:
        """When each file was written last; 0 where it is not there."""
        marks = dict.fromkeys(
            ("status.json", "history.jsonl", "live.json", "approvals.json"), 0
        )
        for name in marks:
            with suppress(FileNotFoundError):
                marks[name] = (self.run.path / name).stat().st_mtime_ns
        return marks


def follow(
    folder: ServerFolder, run_id: str, watch: Watch, sites: Sequence[str]
) -> Outcome:
    """Show the rounds of a run until it ends; only its own bounds end it.

    What it waits for is said when nothing has happened for a while, ever more rarely.

    Raises:
        RunFailed: the SuperLink has not answered for a minute.
    """
    run = watch.run
    asked = answered = news = time.monotonic()
    patience = _STALL_SECONDS
    while True:
        time.sleep(_LOOK_SECONDS)
        if watch.look():
            news, patience = time.monotonic(), _STALL_SECONDS
        elif (quiet := time.monotonic() - news) > patience:
            display().say(
                f"no news for {quiet:.0f} s: {waiting_for(folder, run, sites)}"
            )
            patience = 2 * quiet
        status = watch.status()
        is_over = status is not None and status["state"] != "running"
        if time.monotonic() - asked < (
            _ASK_AT_END_SECONDS if is_over else _ASK_SECONDS
        ):
            continue
        try:
            state = superlink.run_state(folder, run_id)
            answered = time.monotonic()
            if state.has_ended:
                watch.look()
                return conclude(state, watch.status(), run)
        except SuperLinkError as error:
            if time.monotonic() - answered > _LOST_SECONDS:
                raise RunFailed(
                    f"the SuperLink is lost ({error}). Whole rounds are safe in '{run.path}'; go on with: "
                    f"wardround server up, then wardround submit --resume {run.path}"
                ) from None
        asked = time.monotonic()


def conclude(state: RunState, status: dict[str, str] | None, run: RunFolder) -> Outcome:
    """Judge by both witnesses, and correct a run folder whose process could not write its end.

    Args:
        status: what this run wrote into its folder; None if it wrote nothing.
    """
    if status is None:
        if state.status == "finished:completed":
            return Outcome(
                False,
                f"it ended, but wrote no run folder at '{run.path}' on this machine",
            )
        return Outcome(
            False, state.details or f"it ended as {state.status} before its first round"
        )
    if status["state"] == "running":
        if state.status == "finished:stopped":
            status = {"state": "stopped", "reason": "stopped by the coordinator"}
        else:
            reason = (
                state.details or f"the server app ended without a word ({state.status})"
            )
            status = {"state": "failed", "reason": reason}
        run.write_status(**status)
    if status["state"] == "finished" and state.status == "finished:completed":
        return Outcome(True, status["reason"])
    reason = (status["reason"] or state.details or state.status).rstrip(".")
    return Outcome(
        False,
        f"{reason}. To go on from the last whole round: wardround submit --resume {run.path}",
    )


def awaited_by(run: RunFolder) -> list[str]:
    """A line that says whose decision on the plan is awaited; none where nobody's is."""
    undecided = [
        name for name, said in run.approvals().items() if said["code"] == PENDING
    ]
    if not undecided:
        return []
    return [
        f"plan {plan_id(run.path)[:12]} waits for the decision of {', '.join(undecided)}"
    ]


def waiting_for(folder: ServerFolder, run: RunFolder, sites: Sequence[str]) -> str:
    """What keeps a run, in words."""
    if awaited := awaited_by(run):
        return awaited[0]
    live = live_of(run)
    if live is not None and live.missing and run.status()["state"] == "running":
        return f"round {live.round} waits for {', '.join(live.missing)}"
    try:
        states = superlink.fleet_states(folder)
    except SuperLinkError as error:
        return str(error)
    told = {
        name: states[name].status if name in states else "unknown" for name in sites
    }
    absent = [
        f"{name} ({status})" for name, status in told.items() if status != "online"
    ]
    return (
        f"not online: {', '.join(absent)}"
        if absent
        else "all sites are online; the server is at work"
    )
