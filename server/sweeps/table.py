"""A sweep folder: the plan, the cells' run folders, and the table of how they did."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from wardround.common.files import write_atomically, write_json
from wardround.common.settings.tree import Settings
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
    """Empty where the sweep has none."""

    @classmethod
    def of(cls, settings: Settings) -> PlannedCell:
        """The cell these settings run."""
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
        """What the cell shares with its K = 1."""
        return self.model, self.data, self.arm, self.seed


class SweepFolder:
    """The files of one sweep, under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run_folder(self, name: str) -> RunFolder:
        """Where the cell of this name lives."""
        return RunFolder(self.path / "cells" / name)

    def write_plan(self, cells: Iterable[PlannedCell], target_fraction: float) -> None:
        """Say what belongs to the sweep."""
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
        """Test accuracy of the cell of this name after each whole round."""
        records = self.run_folder(name).history()
        return {
            record.round: record.accuracy
            for record in records
            if record.accuracy is not None
        }

    def rows(self) -> list[SweepRow]:
        """How every cell stands, in the order of the plan."""
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
            told = {
                "status": self.run_folder(cell.name).status()["state"],
                "accuracy_at_budget": curves[cell.name].get(cell.budget_rounds),
                "baseline_accuracy": baseline,
                "rounds_to_target": rounds_to(curves[cell.name], baseline, fraction),
            }
            rows.append(SweepRow.model_validate(asdict(cell) | told))
        return rows

    def write_table(self) -> list[SweepRow]:
        """Bring `sweep.csv` up to date; cells may end at the same time in several processes."""
        with FileLock(self.path / ".lock", timeout=60):
            return self._write_rows(self.rows())

    def _write_rows(self, rows: list[SweepRow]) -> list[SweepRow]:
        text = io.StringIO()
        columns = [
            name
            for name in SweepRow.model_fields
            if name != "arm" or any(row.arm for row in rows)
        ]
        write_rows(
            text, [columns, *([getattr(row, name) for name in columns] for row in rows)]
        )
        write_atomically(
            self.path / "sweep.csv", lambda part: part.write_text(text.getvalue())
        )
        return rows


def rounds_to(
    accuracies: dict[int, float], baseline: float | None, fraction: float
) -> int | None:
    """First trained round with accuracy >= fraction * baseline (the paper, section 3.4), or None."""
    if baseline is None:
        return None
    target = fraction * baseline
    return min(
        (round for round, value in accuracies.items() if round > 0 and value >= target),
        default=None,
    )
