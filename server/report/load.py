"""Sweep folders and run folders as data frames and typed records; a damaged run costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from wardround.common.personal import FILE_NAME as PERSONAL
from wardround.common.personal import PersonalRecord
from wardround.common.settings.tree import Settings
from wardround.server.diagnostics.collapse import (
    Collapse,
    Look,
    find_collapses,
    looks_of,
)
from wardround.server.record import ClientRecord, Diagnostics, RoundRecord, best_of
from wardround.server.run_folder import SWEEP_COLUMNS, SweepRow

Outcome = Literal[
    "reached", "not reached", "not yet", "failed", "collapsed", "no baseline"
]
DEFAULT_TARGET_FRACTION = 0.9
KEYS = ["model", "data", "arm", "num_clients", "seed"]
"""Columns that tell one cell of a sweep from another."""
DISPLAY_NAMES = {
    "bert": "BERT",
    "albert": "ALBERT",
    "distilbert": "DistilBERT",
    "minilm": "MiniLM",
    "imdb": "IMDB",
    "yelp_full": "Yelp-Full",
    "ag_news": "AG News",
    "bbc_news": "BBC News",
    "spooky_author": "Spooky Author",
}
T = TypeVar("T")
_adapter = cache(TypeAdapter)


class _Plan(BaseModel):
    """What is read of `sweep.json`."""

    target_fraction: float = DEFAULT_TARGET_FRACTION


class _Labels(BaseModel):
    """`labels.json`."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    label_names: tuple[str, ...] | None = None
    test_counts: tuple[Annotated[int, Field(ge=0)], ...] | None = None


_COLUMNS = {
    "round": "round",
    "test.accuracy": "accuracy",
    "test.macro_f1": "macro_f1",
    "test.loss": "test_loss",
    "test.num_examples": "num_test",
    "validation.accuracy": "validation_accuracy",
    "validation.loss": "validation_loss",
    "train.loss": "train_loss",
    "seconds.train": "seconds_train",
    "seconds.aggregate": "seconds_aggregate",
    "seconds.evaluate": "seconds_evaluate",
    "seconds.total": "seconds",
    "bytes.up": "bytes_up",
    "bytes.down": "bytes_down",
    **{f"diagnostics.{key}": key for key in Diagnostics.model_fields},
}
"""Columns of `Run.table` by their place in a line of `history.jsonl`."""


@dataclass(frozen=True)
class Run:
    """One run folder; whatever is missing in it is None or empty."""

    settings: Settings | None
    state: str | None
    reason: str | None
    rounds: tuple[RoundRecord, ...]
    """In the order of their numbers; round 0 is the initial model."""
    problems: tuple[str, ...] = ()
    """What could not be read, in words."""
    label_names: tuple[str, ...] = ()
    """In the order of their numbers, where they are known."""
    test_counts: tuple[int, ...] = ()
    """Test examples of each label; empty where the run does not tell."""
    approvals: Mapping[str, str] = field(default_factory=dict)
    """Why each site of a deployment does not take part, empty where it does."""
    personal: PersonalRecord | None = None
    """What the clients of a simulation made of its model; None where they made nothing."""

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing evenly: 1 / number of labels; None where they are not known."""
        return 1 / len(self.label_names) if self.label_names else None

    @property
    def largest_share(self) -> float | None:
        """Accuracy of always naming the label most test texts have; `chance` where the run does not tell."""
        return (
            max(self.test_counts) / sum(self.test_counts)
            if any(self.test_counts)
            else self.chance
        )

    @property
    def last_round(self) -> int:
        """Number of the last whole round, 0 before the first."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def best(self) -> RoundRecord | None:
        """The round whose model is kept, where a validation part chose one."""
        return best_of(self.rounds)

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """What is predicted, round by round; empty in a history without diagnostics."""
        return tuple(looks_of(self.rounds))

    @cached_property
    def collapses(self) -> tuple[Collapse, ...]:
        """Every flag of the run; empty where the settings, and with them its rule, are not known."""
        return (
            find_collapses(self.looks, self.settings.train.collapse_rounds)
            if self.settings
            else ()
        )

    @property
    def is_ended_by_collapse(self) -> bool:
        """Whether `train.on_collapse=stop` ended the run."""
        is_up = bool(self.collapses) and self.collapses[-1].is_up
        return (
            is_up
            and self.settings is not None
            and self.settings.train.on_collapse == "stop"
        )

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a round: columns as in `_COLUMNS`, NaN where the line says nothing."""
        parts = {"clients", "left_out", "sites"}
        lines = pd.json_normalize(
            [record.model_dump(exclude=parts) for record in self.rounds]
        )
        table = lines.reindex(columns=list(_COLUMNS)).rename(columns=_COLUMNS)
        numbers = table.columns.difference(["round", "predicted_shares"])
        return table.astype(dict.fromkeys(numbers, float) | {"round": int})

    @cached_property
    def clients(self) -> pd.DataFrame:
        """One row a round and client: `round`, `name`, and the fields of `ClientRecord`."""
        rows = [
            {"round": record.round, "name": client.name, **client.model_dump()}
            for record in self.rounds
            for client in record.clients
        ]
        table = pd.DataFrame(
            rows, columns=["round", "name", *ClientRecord.model_fields]
        )
        return table.astype(
            dict.fromkeys(table.columns.difference(["round", "name", "site"]), float)
        )


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, with the lowest and the highest."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: pd.Series) -> Spread | None:
        """Over the values that are there; None where none is."""
        known = values.dropna()
        return (
            cls(known.mean(), known.min(), known.max(), len(known))
            if len(known)
            else None
        )

    def text(self, pattern: str) -> str:
        """The mean, followed by `(low–high)` where there is more than one seed."""
        mean, low, high = (
            format(value, pattern) for value in (self.mean, self.low, self.high)
        )
        return mean if self.count == 1 else f"{mean} ({low}–{high})"


@dataclass(frozen=True, eq=False)
class Group:
    """One model × data × K over all its seeds: rows of `Sweep.cells`."""

    model: str
    data: str
    num_clients: int
    cells: pd.DataFrame

    @property
    def name(self) -> str:
        """For a sentence: `BERT on AG News with K = 8`."""
        return f"{display_name(self.model)} on {display_name(self.data)} with K = {self.num_clients}"

    @property
    def accuracy(self) -> Spread | None:
        """Test accuracy at the budget, over the seeds that got there."""
        return Spread.of(self.cells["accuracy"])

    @property
    def share(self) -> Spread | None:
        """Accuracy at the budget over the K = 1 accuracy of the same seed."""
        return Spread.of(
            self.cells["accuracy"] / self.cells["baseline"].replace(0, None)
        )

    @property
    def rounds(self) -> Spread | None:
        """Rounds to the target, over the seeds that reached it."""
        return Spread.of(self.cells["rounds_to_target"])

    @property
    def rounds_text(self) -> str:
        """Rounds to the target in words, with what became of the seeds that are not there."""
        if self.rounds is None:
            return self.words("outcome")
        is_part = self.rounds.count < len(self.cells)
        return self.rounds.text(".4g") + (
            f"; {self.words('outcome')}" if is_part else ""
        )

    def words(self, column: str) -> str:
        """What the cells have in the column `status` or `outcome`, with counts where the seeds differ."""
        counts = self.cells[column].value_counts(sort=False)
        return ", ".join(
            f"{count} {word}" if len(counts) > 1 else word
            for word, count in counts.items()
        )


@dataclass(frozen=True, eq=False)
class Sweep:
    """All cells of a sweep in the order of `sweep.csv`."""

    name: str
    cells: pd.DataFrame
    """One row a cell: KEYS, status, accuracy (on the test texts at the budget), baseline (accuracy of K = 1
    with the same model, data and seed), rounds_to_target, outcome, run (a Run or None). NaN: not known."""
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
        """Arms in the order they first appear; empty where the sweep has none."""
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
    def runs(self) -> list[Run]:
        """The runs of the cells that have one."""
        return [run for run in self.cells["run"] if run is not None]

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a cell and round: KEYS, then the columns of `Run.table`."""
        tables = [
            cell.run.table.assign(**{key: getattr(cell, key) for key in KEYS})
            for cell in self.cells.itertuples()
            if cell.run is not None and cell.run.rounds
        ]
        columns = [*KEYS, *_COLUMNS.values()]
        return (
            pd.concat(tables, ignore_index=True)[columns]
            if tables
            else pd.DataFrame(columns=columns)
        )

    def groups(self) -> list[Group]:
        """All that there are, in the order of models and data sets, K ascending."""
        grouped = dict(list(self.cells.groupby(["model", "data", "num_clients"])))
        keys = product(self.models, self.data_sets, self.client_counts)
        return [Group(*key, grouped[key]) for key in keys if key in grouped]

    def chance(self, data: str) -> float | None:
        """Accuracy of guessing evenly; None until a run of this data set has named its labels."""
        return self._first(data, lambda run: run.chance)

    def budget(self, data: str) -> int | None:
        """Rounds at which accuracies are compared; None until a run has written its settings."""
        return self._first(
            data, lambda run: run.settings.data.budget_rounds if run.settings else None
        )

    def second_threshold(self, data: str) -> int | None:
        """Rounds after which a target counts as not reached; None as for `budget`."""
        return self._first(
            data,
            lambda run: (
                run.settings.data.second_threshold_rounds if run.settings else None
            ),
        )

    def _first(self, data: str, read: Callable[[Run], T | None]) -> T | None:
        found = (
            read(run)
            for run in self.cells.loc[self.cells["data"] == data, "run"]
            if run is not None
        )
        return next((value for value in found if value is not None), None)


def load_sweep(folder: Path) -> Sweep:
    """Read `sweep.csv`, every cell's run folder, and the target from `sweep.json` if there is one.

    Raises:
        ValueError: `sweep.csv` lacks a column or holds a value it cannot hold; names file and line.
    """
    lines = _read_lines(folder / "sweep.csv")
    cells = pd.DataFrame(
        [line.model_dump() for line in lines], columns=list(SweepRow.model_fields)
    )
    cells = cells.rename(
        columns={"accuracy_at_budget": "accuracy", "baseline_accuracy": "baseline"}
    )
    cells = cells.astype(
        dict.fromkeys(["accuracy", "baseline", "rounds_to_target"], float)
    )
    folders = [folder / "cells" / line.folder for line in lines]
    cells["run"] = pd.Series(
        [load_run(path) if path.is_dir() else None for path in folders], dtype=object
    )
    cells["outcome"] = [
        _outcome(line, run) for line, run in zip(lines, cells["run"], strict=True)
    ]
    return Sweep(
        folder.name,
        cells,
        _read(folder / "sweep.json", _Plan, _Plan(), []).target_fraction,
    )


def load_run(folder: Path) -> Run:
    """Read one run folder; a file that is missing or damaged is named in `problems`, not raised."""
    problems: list[str] = []
    settings = _read_settings(folder / "settings.json", problems)
    status: dict[str, str | None] = _read(
        folder / "status.json", dict[str, str | None], {}, problems
    )
    labels = _read(folder / "labels.json", _Labels, _Labels(), problems)
    approvals: dict[str, dict[str, str]] = _read(
        folder / "approvals.json", dict[str, dict[str, str]], {}, problems
    )
    names = (
        labels.label_names
        if labels.label_names is not None
        else settings and settings.data.label_names
    )
    return Run(
        settings=settings,
        state=status.get("state"),
        reason=status.get("reason") or None,
        rounds=_read_history(folder / "history.jsonl", problems),
        problems=tuple(problems),
        label_names=names or (),
        test_counts=labels.test_counts or (),
        approvals={
            name: said.get("words", "") for name, said in sorted(approvals.items())
        },
        personal=_read(folder / PERSONAL, PersonalRecord, None, problems),
    )


def display_name(label: str) -> str:
    """How a model or data set is written for readers."""
    return DISPLAY_NAMES.get(label, label)


def joined(items: Iterable[object]) -> str:
    """`a, b and c`."""
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _read_lines(path: Path) -> list[SweepRow]:
    again = "Run the sweep's command again: it rewrites the file from its cells."
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
        missing = [name for name in SWEEP_COLUMNS if name not in table]
        if missing:
            raise ValueError(
                f"column {', '.join(missing)} is missing; there are {', '.join(SWEEP_COLUMNS)}"
            )
        return TypeAdapter(list[SweepRow]).validate_python(table.to_dict("records"))
    except ValidationError as error:
        first = error.errors()[0]
        line, key = int(first["loc"][0]) + 2, first["loc"][1]
        raise ValueError(
            f"{path}, line {line}: {key} is {first['input']!r}: {first['msg']}. {again}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {again}") from None


def _outcome(line: SweepRow, run: Run | None) -> Outcome:
    """What became of the target; `not yet` may still change, `collapsed` was ended before it could."""
    if line.rounds_to_target is not None:
        return "reached"
    if line.status == "failed":
        return "failed"
    if line.status != "finished":
        return "not yet"
    if run is not None and run.is_ended_by_collapse:
        return "collapsed"
    if line.baseline_accuracy is None:
        return "no baseline"
    if run is None or run.settings is None:
        return "not reached"
    # A learning rate that has decayed to zero by the budget ends the run there.
    data, constant = run.settings.data, run.settings.train.schedule == "constant"
    limit = data.second_threshold_rounds if constant else data.budget_rounds
    return "not reached" if run.last_round >= limit else "not yet"


def _read_settings(path: Path, problems: list[str]) -> Settings | None:
    try:
        return Settings.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (ValueError, TypeError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
    return None


def _read(path: Path, kind: Any, otherwise: T, problems: list[str]) -> T:
    """What a JSON file of this kind holds; `otherwise` where it is missing or damaged."""
    try:
        found: T = _adapter(kind).validate_json(path.read_bytes())
        return found
    except FileNotFoundError:
        pass
    except ValidationError:
        problems.append(f"{path.name} cannot be read")
    return otherwise


def _read_history(path: Path, problems: list[str]) -> tuple[RoundRecord, ...]:
    rounds: dict[int, RoundRecord] = {}
    lines = (
        path.read_text(encoding="utf-8", errors="replace").split("\n")
        if path.is_file()
        else []
    )
    for number, line in enumerate(lines, start=1):
        try:
            record = RoundRecord.read(line)
        except ValueError:
            # What follows the last newline is empty, or a line that a kill cut in the middle.
            if number < len(lines):
                problems.append(
                    f"{path.name} line {number} cannot be read and was left out"
                )
            continue
        rounds[record.round] = record
    return tuple(rounds[number] for number in sorted(rounds))
