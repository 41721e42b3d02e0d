"""Run a sweep: every cell up to its budget, then on to its target. It can be stopped and
continued."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from wardround.common.errors import FolderInUse, RunFailed
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import merit
from wardround.server.compose import compose, launch, settings_of
from wardround.server.diagnostics.collapse import standing_collapse
from wardround.server.display import display
from wardround.server.engines.simulate import simulate
from wardround.server.run_folder import SweepRow
from wardround.server.sweeps.plan import SweepPlan, compose_sweep
from wardround.server.sweeps.table import PlannedCell, SweepFolder, target_of
from wardround.server.typed_words import hydra_text

if TYPE_CHECKING:
    from wardround.server.report.findings import Findings
    from wardround.server.report.sweep import SweepData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep."""

    rows: list[SweepRow]
    report: Path


@dataclass(frozen=True)
class Cell:
    """One run of the sweep: its settings up to the budget, and the overrides that give them."""

    settings: Settings
    overrides: tuple[str, ...]


def sweep(
    overrides: Sequence[str], study: Callable[[SweepData], Findings] | None = None
) -> SweepResult:
    """Run or continue all cells and write the report, with the findings of the study.

    Raises:
        ValueError: bad input, or a cell's folder holds a run with other settings; nothing was
            run then.
    """
    plan = compose_sweep(overrides)
    folder = SweepFolder(Path(plan.run_dir))
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(
            f"run_dir is '{folder.path}', which is a file. Choose another run_dir=..."
        )
    cells = [_cell(folder, cell_overrides) for cell_overrides in plan.cells]
    for cell in cells:
        folder.run_folder(cell.settings.cell).check_owner(cell.settings)
    folder.write_plan(
        [PlannedCell.of(cell.settings) for cell in cells], plan.target_fraction
    )
    try:
        to_budget = [cell.overrides for cell in cells if not _at_budget(folder, cell)]
        _launch(plan, folder, to_budget)
        _launch(plan, folder, _to_target(folder, cells, plan.target_fraction))
    finally:
        rows = folder.write_table()
        display().close()
    # Here, because it loads pandas and matplotlib, which the cells do not need.
    from wardround.server.report.render import write_report

    return SweepResult(rows, write_report(folder.path, study))


def _cell(folder: SweepFolder, overrides: Sequence[str]) -> Cell:
    settings = compose(overrides).settings
    budget = settings.data.budget_rounds
    run_dir = str(folder.run_folder(settings.cell).path)
    return Cell(
        replace(settings, run_dir=run_dir, num_rounds=budget),
        (*overrides, f"run_dir={hydra_text(run_dir)}", f"num_rounds={budget}"),
    )


def _at_budget(folder: SweepFolder, cell: Cell) -> bool:
    """Return True if the cell's first phase is done. A reached target or a collapse may end it
    early."""
    name = cell.settings.cell
    if folder.run_folder(name).status()["state"] != "finished":
        return False
    accuracies = folder.accuracies(name)
    if cell.settings.data.budget_rounds in accuracies:
        return True
    task = task_of(cell.settings)
    target = cell.settings.evaluation.target_accuracy
    has_reached_target = target is not None and any(
        merit(task, accuracy) >= merit(task, target)
        for round, accuracy in accuracies.items()
        if round > 0
    )
    return has_reached_target or _is_ended_by_collapse(folder, cell)


def _is_ended_by_collapse(folder: SweepFolder, cell: Cell) -> bool:
    train = cell.settings.train
    if train.on_collapse != "stop":
        return False
    records = folder.run_folder(cell.settings.cell).history()
    return (
        standing_collapse(records, task_of(cell.settings), train.collapse_rounds)
        is not None
    )


def _to_target(
    folder: SweepFolder, cells: Sequence[Cell], fraction: float
) -> list[tuple[str, ...]]:
    """Return the overrides of the cells that are below their target and may continue.

    Two kinds of cells do not: if the learning rate has decayed to zero by the budget, they learn
    nothing more; and a collapse under `train.on_collapse=stop` is final.
    """
    jobs = []
    for cell, row in zip(cells, folder.rows(), strict=True):  # both in the plan's order
        baseline = row.baseline_accuracy
        threshold = cell.settings.data.second_threshold_rounds
        if (
            baseline is not None
            and row.rounds_to_target is None
            and _at_budget(folder, cell)
            and not _is_ended_by_collapse(folder, cell)
            and cell.settings.train.schedule == "constant"
            and max(folder.accuracies(cell.settings.cell)) < threshold
        ):
            # A fraction above 1 may ask for an accuracy above 1.
            target = min(1.0, target_of(task_of(cell.settings), baseline, fraction))
            goal = (f"num_rounds={threshold}", f"evaluation.target_accuracy={target!r}")
            jobs.append((*cell.overrides[:-1], *goal))
    return jobs


def _launch(
    plan: SweepPlan, folder: SweepFolder, jobs: Sequence[Sequence[str]]
) -> None:
    """Run jobs by Hydra's launcher: one after the other here, or elsewhere by a plug-in."""
    if jobs:
        _show(folder)
        launch(plan.config, partial(_run_cell, folder.path), jobs)


def _run_cell(root: Path, config: DictConfig) -> None:
    """Run one cell, in the process that the launcher chose. A failure does not stop the other
    cells."""
    settings = settings_of(config)
    folder = SweepFolder(root)
    run = folder.run_folder(settings.cell)
    try:
        simulate(settings)
    except FolderInUse as error:  # that process writes its state
        display().say(f"{settings.cell} left alone: {error}")
    except (RunFailed, ValueError) as error:
        display().say(f"{settings.cell} failed: {error}")
        run.write_status("failed", str(error))
    except Exception as error:
        log.exception("%s failed", settings.cell)
        run.write_status("failed", f"{type(error).__name__}: {error}")
    folder.write_table()
    _show(folder)


def _show(folder: SweepFolder) -> None:
    rows = folder.rows()
    done = sum(row.status == "finished" for row in rows)
    display().start_sweep("sweep", len(rows), done)
