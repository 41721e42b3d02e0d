"""A sweep folder as a data frame of cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from wardround.common.tasks.table import task_of
from wardround.server.report.names import display_name
from wardround.server.report.run import RunData, columns_of, load_run
from wardround.server.run_folder import SWEEP_COLUMNS, SweepRow

TargetResult = Literal[
    "reached", "not reached", "not yet", "failed", "collapsed", "no baseline"
]
DEFAULT_TARGET_FRACTION = 0.9
KEYS = ["model", "data", "arm", "num_clients", "seed"]
"""Columns that tell one cell of a sweep from another."""
T = TypeVar("T")


class _Plan(BaseModel):
    """The part of `sweep.json` that a report reads."""

    target_fraction: float = DEFAULT_TARGET_FRACTION


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, with the lowest and the highest."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: pd.Series) -> Spread | None:
        """Return the spread of the values that are not NaN; None if there are none."""
        known = values.dropna()
        if not len(known):
            return None
        return cls(known.mean(), known.min(), known.max(), len(known))

    def text(self, pattern: str) -> str:
        """Return the mean, followed by `(low–high)` if there is more than one seed."""
        mean = format(self.mean, pattern)
        if self.count == 1:
            return mean
        return f"{mean} ({self.low:{pattern}}–{self.high:{pattern}})"


@dataclass(frozen=True, eq=False)
class Group:
    """One model × data × K over all its seeds: rows of `SweepData.cells`."""

    model: str
    data: str
    num_clients: int
    cells: pd.DataFrame

    @property
    def name(self) -> str:
        """Name for a sentence: `BERT on AG News with K = 8`."""
        model = display_name(self.model)
        data = display_name(self.data)
        return f"{model} on {data} with K = {self.num_clients}"

    @property
    def accuracy(self) -> Spread | None:
        """Test accuracy at the budget, over the seeds that got there."""
        return Spread.of(self.cells["accuracy"])

    @property
    def share(self) -> Spread | None:
        """Accuracy at the budget over the K = 1 accuracy of the same seed."""
        baseline = self.cells["baseline"].replace(0, None)
        return Spread.of(self.cells["accuracy"] / baseline)

    @property
    def rounds(self) -> Spread | None:
        """Rounds to the target, over the seeds that reached it."""
        return Spread.of(self.cells["rounds_to_target"])

    @property
    def rounds_text(self) -> str:
        """Rounds to the target in words, and the result of the seeds that did not reach it."""
        if self.rounds is None:
            return self.words("outcome")
        text = self.rounds.text(".4g")
        if self.rounds.count < len(self.cells):
            text += f"; {self.words('outcome')}"
        return text

    def words(self, column: str) -> str:
        """Return the values of the column `status` or `outcome`, with counts if the seeds
        differ."""
        counts = self.cells[column].value_counts(sort=False)
        if len(counts) == 1:
            return str(counts.index[0])
        return ", ".join(f"{count} {word}" for word, count in counts.items())


@dataclass(frozen=True, eq=False)
class SweepData:
    """All cells of a sweep in the order of `sweep.csv`."""

    name: str
    cells: pd.DataFrame
    """A row for each cell: KEYS, status, accuracy (on the test texts at the budget), baseline
    (accuracy of K = 1 with the same model, data and seed), rounds_to_target, outcome (a
    TargetResult), run (a RunData or None). NaN: not known."""
    target_fraction: float = DEFAULT_TARGET_FRACTION
    """Share of the baseline that a cell has to reach."""

    @property
    def models(self) -> list[str]:
        """Models in the order they first appear."""
        return list(self.cells["model"].unique())

    @property
    def data_sets(self) -> list[str]:
        """Data sets in the order they first appear."""
        return list(self.cells["data"].unique())

    @property
    def arms(self) -> list[str]:
        """Arms in the order they first appear; empty if the sweep has no arms."""
        return [arm for arm in self.cells["arm"].unique() if arm]

    @property
    def client_counts(self) -> list[int]:
        """Every K, ascending."""
        return sorted(self.cells["num_clients"].unique().tolist())

    @property
    def seeds(self) -> list[int]:
        """Every seed, ascending."""
        return sorted(self.cells["seed"].unique().tolist())

    @property
    def runs(self) -> list[RunData]:
        """The runs of the cells that have one."""
        return [run for run in self.cells["run"] if run is not None]

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """A row for each cell and round: KEYS, then the columns of `RunData.table`."""
        tables = []
        for cell in self.cells.itertuples():
            if cell.run is not None and cell.run.rounds:
                keys = {key: getattr(cell, key) for key in KEYS}
                tables.append(cell.run.table.assign(**keys))
        task = self.runs[0].task if self.runs else task_of(None)
        columns = [*KEYS, *columns_of(task).values()]
        if not tables:
            return pd.DataFrame(columns=columns)
        return pd.concat(tables, ignore_index=True)[columns]

    def groups(self) -> list[Group]:
        """Return all groups in the order of models and data sets, K ascending."""
        grouped = dict(list(self.cells.groupby(["model", "data", "num_clients"])))
        keys = product(self.models, self.data_sets, self.client_counts)
        return [Group(*key, grouped[key]) for key in keys if key in grouped]

    def chance(self, data: str) -> float | None:
        """Return the accuracy of guessing evenly; None until a run of this data set has its
        labels."""
        return self._first(data, lambda run: run.chance)

    def budget(self, data: str) -> int | None:
        """Return the rounds at which accuracies are compared; None until a run has its settings."""
        return self._first(
            data, lambda run: run.settings.data.budget_rounds if run.settings else None
        )

    def second_threshold(self, data: str) -> int | None:
        """Return the rounds after which a target counts as not reached; None as for `budget`."""
        return self._first(
            data,
            lambda run: (
                run.settings.data.second_threshold_rounds if run.settings else None
            ),
        )

    def _first(self, data: str, read: Callable[[RunData], T | None]) -> T | None:
        """Return the first value that a run of this data set has; None if no run has one."""
        for run in self.cells.loc[self.cells["data"] == data, "run"]:
            value = None if run is None else read(run)
            if value is not None:
                return value
        return None


def load_sweep(folder: Path) -> SweepData:
    """Read `sweep.csv`, every cell's run folder, and the target from `sweep.json` if there is one.

    Raises:
        ValueError: `sweep.csv` lacks a column or has a wrong value; names file and line.
    """
    rows = _read_rows(folder / "sweep.csv")
    cells = pd.DataFrame(
        [row.model_dump() for row in rows], columns=list(SweepRow.model_fields)
    )
    cells = cells.rename(
        columns={"accuracy_at_budget": "accuracy", "baseline_accuracy": "baseline"}
    )
    cells = cells.astype(
        dict.fromkeys(["accuracy", "baseline", "rounds_to_target"], float)
    )
    runs = []
    for row in rows:
        path = folder / "cells" / row.folder
        runs.append(load_run(path) if path.is_dir() else None)
    cells["run"] = pd.Series(runs, dtype=object)
    cells["outcome"] = [
        _target_result(row, run) for row, run in zip(rows, runs, strict=True)
    ]
    return SweepData(folder.name, cells, _read_target_fraction(folder / "sweep.json"))


def _read_target_fraction(path: Path) -> float:
    """Return the sweep's fraction; the default if the file is missing or damaged."""
    try:
        return _Plan.model_validate_json(path.read_bytes()).target_fraction
    except (FileNotFoundError, ValidationError):
        return DEFAULT_TARGET_FRACTION


def _read_rows(path: Path) -> list[SweepRow]:
    again = "Run the sweep's command again: it rewrites the file from its cells."
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        missing = [name for name in SWEEP_COLUMNS if name not in table]
        if missing:
            raise ValueError(
                f"column {', '.join(missing)} is missing; expected {', '.join(SWEEP_COLUMNS)}"
            )
        return TypeAdapter(list[SweepRow]).validate_python(table.to_dict("records"))
    except ValidationError as error:
        first = error.errors()[0]
        line = int(first["loc"][0]) + 2
        key = first["loc"][1]
        raise ValueError(
            f"{path}, line {line}: {key} is {first['input']!r}: {first['msg']}. {again}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {again}") from None


def _target_result(row: SweepRow, run: RunData | None) -> TargetResult:
    """Say if a cell reached its target. `not yet` may still change; `collapsed` ended before it
    could."""
    if row.rounds_to_target is not None:
        return "reached"
    if row.status == "failed":
        return "failed"
    if row.status != "finished":
        return "not yet"
    if run is not None and run.is_ended_by_collapse:
        return "collapsed"
    if row.baseline_accuracy is None:
        return "no baseline"
    if run is None or run.settings is None:
        return "not reached"
    data = run.settings.data
    # A learning rate that has decayed to zero by the budget ends the run there.
    limit = data.budget_rounds
    if run.settings.train.schedule == "constant":
        limit = data.second_threshold_rounds
    return "not reached" if run.last_round >= limit else "not yet"
