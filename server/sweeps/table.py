"""A sweep folder: the plan, the cells' run folders, and the table of results."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from wardround.common.files import write_json, write_text
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import Task, merit
from wardround.server.run_folder import RunFolder, SweepRow
from wardround.server.spreadsheet import write_rows


@dataclass(frozen=True)
class PlannedCell:
    """One cell of the plan."""

    name: str
    model: str
    data: str
    num_clients: int
    seed: int
    budget_rounds: int
    """Rounds at which accuracies are compared."""
    arm: str = ""
    """Name of its arm; empty if the sweep has no arms."""

    @classmethod
    def of(cls, settings: Settings) -> PlannedCell:
        """Return the cell of these settings."""
        return cls(
            name=settings.cell,
            model=settings.model.short_name,
            data=settings.data.short_name,
            num_clients=settings.num_clients,
            seed=settings.seed,
            budget_rounds=settings.data.budget_rounds,
            arm=settings.arm,
        )

    @property
    def baseline_key(self) -> tuple[str, str, str, int]:
        """Model, data, arm and seed: they are the same in the cell and in its baseline (K = 1)."""
        return self.model, self.data, self.arm, self.seed


class SweepFolder:
    """The files of one sweep, under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run_folder(self, name: str) -> RunFolder:
        """Return the run folder of a cell."""
        return RunFolder(self.path / "cells" / name)

    def write_plan(self, cells: Iterable[PlannedCell], target_fraction: float) -> None:
        """Write the cells and the target of the sweep."""
        plan = {
            "target_fraction": target_fraction,
            "cells": [asdict(cell) for cell in cells],
        }
        write_json(self.path / "sweep.json", plan)

    def read_plan(self) -> tuple[list[PlannedCell], float]:
        """Inverse of `write_plan`."""
        plan = json.loads((self.path / "sweep.json").read_text(encoding="utf-8"))
        return [PlannedCell(**cell) for cell in plan["cells"]], plan["target_fraction"]

    def accuracies(self, name: str) -> dict[int, float]:
        """Return the test score of a cell after each whole round: for most tasks, the accuracy."""
        run = self.run_folder(name)
        task = task_of(run.settings())
        scores = {record.round: record.score(task) for record in run.history()}
        return {round: score for round, score in scores.items() if score is not None}

    def rows(self) -> list[SweepRow]:
        """Return the result of every cell, in the order of the plan."""
        cells, fraction = self.read_plan()
        curves = {cell.name: self.accuracies(cell.name) for cell in cells}
        baselines = {
            cell.baseline_key: curves[cell.name].get(cell.budget_rounds)
            for cell in cells
            if cell.num_clients == 1
        }
        rows = []
        for cell in cells:
            baseline = baselines.get(cell.baseline_key)
            curve = curves[cell.name]
            row = asdict(cell)
            row["status"] = self.run_folder(cell.name).status()["state"]
            row["accuracy_at_budget"] = curve.get(cell.budget_rounds)
            row["baseline_accuracy"] = baseline
            row["rounds_to_target"] = rounds_to(
                curve,
                baseline,
                fraction,
                task_of(self.run_folder(cell.name).settings()),
            )
            rows.append(SweepRow.model_validate(row))
        return rows

    def write_table(self) -> list[SweepRow]:
        """Update `sweep.csv`. A lock is held, because cells of several processes may
        end at the same time."""
        with FileLock(self.path / ".lock", timeout=60):
            return self._write_rows(self.rows())

    def _write_rows(self, rows: list[SweepRow]) -> list[SweepRow]:
        text = io.StringIO()
        columns = [
            name
            for name in SweepRow.model_fields
            if name != "arm" or any(row.arm for row in rows)
        ]
        values = ([getattr(row, name) for name in columns] for row in rows)
        write_rows(text, [columns, *values])
        file = self.path / "sweep.csv"
        write_text(file, text.getvalue())
        return rows


def rounds_to(
    accuracies: dict[int, float],
    baseline: float | None,
    fraction: float,
    task: Task,
) -> int | None:
    """Return the first trained round that is as good as `target_of` says (paper, section 3.4),
    or None."""
    if baseline is None:
        return None
    target = merit(task, target_of(task, baseline, fraction))
    reached = (
        number
        for number, value in accuracies.items()
        if number > 0 and merit(task, value) >= target
    )
    return min(
        reached,
        default=None,
    )


def target_of(task: Task, baseline: float, fraction: float) -> float:
    """Return the score to reach: `fraction` of the baseline, or more than it if lower is better."""
    return fraction * baseline if task.higher_is_better else baseline / fraction
