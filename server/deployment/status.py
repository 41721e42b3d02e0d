"""Where a run stands, told from its files, and which registered sites are online."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common.settings import Settings
from server.deployment.folder import ServerFolder
from server.diagnostics.collapse import find_collapses, looks_of
from server.record import RoundRecord
from server.run_folder import RunFolder


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
    collapses: tuple[Mapping[str, Any], ...]
    """`round`, `is_up` and `words` of each flag."""
    live: Live | None
    sites: Mapping[str, Mapping[str, Any]] | None
    """`status`, `online_seconds`, `offline_at`, `refused` (calls by reason) and `max_examples` of each
    registered site; None if nobody could be asked."""
    superlink: str | None
    """Why the sites are not known."""
    refused: Mapping[str, Mapping[str, int]]
    """How many answers of each site did not count in this run, by reason."""
    next_step: str


def standing_of(run: RunFolder, folder: ServerFolder | None, now: datetime | None = None) -> Standing:
    """Read the files of `run` and ask the SuperLink of `folder`, if there is one.

    Raises:
        ValueError: the run folder's files are not what they should be.
    """
    settings, status, records = run.settings(), run.status(), run.history()
    rounds = [_brief(record) for record in records]
    state = status["state"]
    if state == "running" and not is_held(run):
        state = "interrupted"
    sites, trouble = _ask_sites(folder) if folder else (None, None)
    last = rounds[-1] if rounds else {"round": None, "accuracy": None}
    goes_on = state in ("failed", "stopped", "interrupted") and settings and not settings.engine.is_simulated
    return Standing(
        run_dir=str(run.path),
        cell=settings.cell if settings else None,
        state=state,
        reason=status["reason"],
        round=last["round"],
        num_rounds=settings.num_rounds if settings else None,
        accuracy=last["accuracy"],
        rounds=tuple(rounds),
        collapses=collapses_of(run, settings, records) if settings else (),
        live=live_of(run, now) if state == "running" else None,
        sites=sites,
        superlink=trouble,
        refused=run.refused(),
        next_step=f"wardround submit --resume {run.path}" if goes_on else "",
    )


def live_of(run: RunFolder, now: datetime | None = None) -> Live | None:
    """The round under way as the server app last wrote it; None where there is none."""
    file = run.path / "live.json"
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    waited = ((now or datetime.now(UTC)) - datetime.fromisoformat(read["since"])).total_seconds()
    missing = {str(name): max(0.0, waited) for name in read["waiting_for"]}
    warnings = tuple(map(str, read["warnings"]))
    return Live(int(read["round"]), tuple(map(str, read["answered"])), missing, warnings)


def collapses_of(
    run: RunFolder, settings: Settings, records: Sequence[RoundRecord]
) -> tuple[dict[str, Any], ...]:
    """Every flag of these rounds: the round it was raised in, whether it is up, a line for people."""
    names, found = run.label_names(), find_collapses(looks_of(records), settings.train.collapse_rounds)
    return tuple({"round": flag.round, "is_up": flag.is_up, "words": flag.words(names)} for flag in found)


def is_held(run: RunFolder) -> bool:
    """Whether a process runs in the folder."""
    file = run.path / ".lock"
    if not file.exists():
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def to_json(standing: Standing) -> str:
    """The same as indented JSON."""
    return json.dumps(asdict(standing), indent=2, ensure_ascii=False)


def to_text(standing: Standing) -> str:
    """The same for people."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("status.txt.j2").render(asdict(standing)).rstrip("\n")


def _ask_sites(folder: ServerFolder) -> tuple[dict[str, dict[str, Any]] | None, str | None]:
    """State of every registered site, or why it is not known."""
    from server.deployment import superlink

    try:
        states = superlink.fleet_states(folder)
    except superlink.SuperLinkError as error:
        return None, str(error)
    unknown = superlink.NodeState("registered", 0.0, "", {})
    return {
        name: asdict(states.get(name, unknown)) | {"max_examples": site.max_examples}
        for name, site in folder.sites().items()
    }, None


def _brief(record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.round,
        "accuracy": record.accuracy,
        "loss": record.train.loss,
        "seconds": record.seconds.total,
    }


def folder_and_run(run_dir: Path | None, folder_path: Path) -> tuple[RunFolder, ServerFolder | None]:
    """What `wardround status [RUN_DIR]` is about: without a run folder, the run submitted last.

    Raises:
        ValueError: there is neither.
    """
    folder = ServerFolder(folder_path) if (folder_path / "server.yaml").exists() else None
    if run_dir is not None:
        if not run_dir.is_dir():
            raise ValueError(f"'{run_dir}' is no folder. Give the run folder that `wardround submit` named.")
        return RunFolder(run_dir), folder
    last = folder.last_run() if folder else None
    if last is None:
        where = f"'{folder_path}' has no run yet" if folder else f"'{folder_path}' is no server folder"
        raise ValueError(
            f"{where}. Name a run folder: wardround status RUN_DIR, or a server folder with --dir."
        )
    return RunFolder(Path(last["run_dir"])), folder
