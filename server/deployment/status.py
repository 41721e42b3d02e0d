"""The status of a run: read from its files and from the SuperLink."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardround.common.personal_record import PersonalRecord
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import Task
from wardround.common.words import cleaned, pasteable, printable
from wardround.server.deployment import superlink
from wardround.server.deployment.folder import ServerFolder
from wardround.server.deployment.plan import plan_id
from wardround.server.deployment.superlink import NodeState, SuperLinkError
from wardround.server.diagnostics.collapse import collapses_in
from wardround.server.record import RoundRecord, best_of
from wardround.server.run_folder import RunFolder


@dataclass(frozen=True)
class OpenRound:
    """The round that is in progress."""

    round: int
    answered: tuple[str, ...]
    missing: Mapping[str, float]
    """Seconds since each site that has not answered was asked."""
    warnings: tuple[str, ...] = ()
    """The newest warnings of the whole run: a site that was left out of a round, and the reason."""


@dataclass(frozen=True)
class RunStatus:
    """All that `wardround status` shows. Its fields are stable as JSON."""

    run_dir: str
    cell: str | None
    state: str
    """`pending`, `running`, `finished`, `failed`, `stopped`, or `interrupted` (no process runs
    it)."""
    reason: str
    round: int | None
    """The last whole round that was measured."""
    num_rounds: int | None
    accuracy: float | None
    """The score of that round."""
    rounds: tuple[Mapping[str, Any], ...]
    """`round`, `accuracy` (the score), `loss` and `seconds` of each round."""
    best: Mapping[str, Any] | None
    """`round`, `accuracy` and `validation_accuracy` of the best model; None if none is chosen."""
    collapses: tuple[Mapping[str, Any], ...]
    """`round`, `is_up` and `words` of each flag."""
    live: OpenRound | None
    sites: Mapping[str, Mapping[str, Any]] | None
    """`status`, `online_seconds`, `offline_at`, `refused` (calls by reason) and `max_examples`
    of each registered site; None if the server does not answer."""
    superlink: str | None
    """The reason why the sites are not known."""
    plan: str
    """SHA-256 of the plan that its sites decide on; empty if there is no plan."""
    approvals: Mapping[str, Mapping[str, str]]
    """Decision of each site on the plan: `code` (empty if it takes part) and `words`."""
    refused: Mapping[str, Mapping[str, int]]
    """Number of answers of each site that were refused in this run, by reason."""
    personal: PersonalRecord | None
    """The personal models of a simulation's clients, as in `personal.json`; None if there are
    none."""
    next_step: str
    task: Task
    """The task of the run; not in the JSON."""

    def to_json(self) -> str:
        """Return indented JSON."""
        facts = asdict(self)
        del facts["task"]
        return json.dumps(facts, indent=2, default=PersonalRecord.model_dump)

    def to_text(self) -> str:
        """Return the status as text for people."""
        templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters["printable"] = printable
        facts = _printable(asdict(self) | {"personal": None})
        facts["score_words"] = self.task.metric_words[self.task.score]
        facts["personal"] = self.personal
        facts["metric_words"] = self.task.metric_words
        if self.personal and self.personal.sites:
            facts["worst_off"] = self.personal.worst(self.task).name
        # The coordinator typed the path in it: it keeps its spaces.
        facts["next_step"] = cleaned(self.next_step)
        return templates.get_template("status.txt.j2").render(facts).rstrip("\n")


def _printable(value: Any) -> Any:
    """Make each text in a value fit for one line: sites wrote some, and a run folder may be
    foreign."""
    if isinstance(value, str):
        return printable(value, None)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_printable, value))
    return value


def find_run(
    run_dir: Path | None, folder_path: Path
) -> tuple[RunFolder, ServerFolder | None]:
    """Return the run of `wardround status [RUN_DIR]` and its server folder. Default: the last run.

    Raises:
        ValueError: there is no such run.
    """
    folder = None
    if (folder_path / "server.yaml").exists():
        folder = ServerFolder(folder_path)
    if run_dir is not None:
        if not run_dir.is_dir():
            raise ValueError(
                f"'{run_dir}' is not a folder. Give the run folder that `wardround submit` named."
            )
        return RunFolder(run_dir), folder
    last = folder.last_run() if folder else None
    if last is None:
        reason = "has no run yet" if folder else "is not a server folder"
        raise ValueError(
            f"'{folder_path}' {reason}. Name a run folder: wardround status RUN_DIR, or a server "
            f"folder "
            "with --dir."
        )
    return RunFolder(Path(last["run_dir"])), folder


def read_status(
    run: RunFolder, folder: ServerFolder | None, now: datetime | None = None
) -> RunStatus:
    """Read the files of `run` and ask the SuperLink of `folder`, if there is one.

    Raises:
        ValueError: a file of the run folder is wrong.
    """
    settings = run.settings()
    status = run.status()
    records = run.history()
    state = status["state"]
    if state == "running" and not is_held(run):
        state = "interrupted"
    sites, problem = _ask_sites(folder) if folder else (None, None)
    can_resume = (
        settings is not None
        and not settings.engine.is_simulated
        and state in ("failed", "stopped", "interrupted")
    )
    last = records[-1] if records else None
    task = task_of(settings)
    return RunStatus(
        run_dir=str(run.path),
        cell=settings.cell if settings else None,
        state=state,
        reason=status["reason"],
        round=last.round if last else None,
        num_rounds=settings.num_rounds if settings else None,
        accuracy=last.score(task) if last else None,
        rounds=tuple(_round_facts(record, task) for record in records),
        best=_best_round_facts(records, task),
        collapses=_collapse_facts(run, settings, records) if settings else (),
        live=read_open_round(run, now) if state == "running" else None,
        sites=sites,
        superlink=problem,
        plan=plan_id(run.path),
        approvals=run.approvals(),
        refused=run.refused(),
        personal=PersonalRecord.read(run.path),
        task=task,
        next_step=f"wardround submit --resume {pasteable(run.path)}"
        if can_resume
        else "",
    )


def _round_facts(record: RoundRecord, task: Task) -> dict[str, Any]:
    return {
        "round": record.round,
        "accuracy": record.score(task),
        "loss": record.train.loss,
        "seconds": record.seconds.total,
    }


def _ask_sites(
    folder: ServerFolder,
) -> tuple[dict[str, dict[str, Any]] | None, str | None]:
    """Return the state of every registered site, or the reason why it is not known."""
    try:
        states = superlink.fleet_states(folder)
    except SuperLinkError as error:
        return None, str(error)
    unknown = NodeState("registered", 0.0, "", {})
    sites = {}
    for name, site in folder.sites().items():
        state = asdict(states.get(name, unknown))
        sites[name] = state | {"max_examples": site.max_examples}
    return sites, None


def read_open_round(run: RunFolder, now: datetime | None = None) -> OpenRound | None:
    """Return the round in progress as the server app wrote it last; None if there is none."""
    file = run.path / "live.json"
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    waited = (now or datetime.now(UTC)) - datetime.fromisoformat(read["since"])
    seconds = max(0.0, waited.total_seconds())
    return OpenRound(
        read["round"],
        answered=tuple(read["answered"]),
        missing=dict.fromkeys(read["waiting_for"], seconds),
        warnings=tuple(read["warnings"]),
    )


def _best_round_facts(
    records: Sequence[RoundRecord], task: Task
) -> dict[str, Any] | None:
    """Return the round with the best model on the validation part; None if there is none."""
    best = best_of(records, task)
    if best is None or best.validation is None:
        return None
    return {
        "round": best.round,
        "accuracy": best.score(task),
        "validation_accuracy": best.validation.score(task),
    }


def _collapse_facts(
    run: RunFolder, settings: Settings, records: Sequence[RoundRecord]
) -> tuple[dict[str, Any], ...]:
    """Return every flag of these rounds: its round, whether it is up, and a line for people."""
    names = run.label_names()
    return tuple(
        {"round": flag.round, "is_up": flag.is_up, "words": flag.words(names)}
        for flag in collapses_in(
            records, task_of(settings), settings.train.collapse_rounds
        )
    )


def is_held(run: RunFolder) -> bool:
    """Return True if a process runs in the folder."""
    file = run.path / ".lock"
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except (Timeout, OSError):
        return True
