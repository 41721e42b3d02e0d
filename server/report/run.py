"""A run folder as typed records and data frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from wardround.common.personal_record import FILE_NAME as PERSONAL
from wardround.common.personal_record import PersonalRecord
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.tasks.task import Task
from wardround.server.diagnostics.collapse import (
    Collapse,
    collapses_in,
    scored_rounds,
)
from wardround.server.record import ClientRecord, Diagnostics, RoundRecord, best_of
from wardround.server.run_folder import Labels, RunFolder

T = TypeVar("T")
_COLUMNS = {
    "test.loss": "test_loss",
    "test.num_examples": "num_test",
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


def columns_of(task: Task) -> dict[str, str]:
    """Return the columns of `RunData.table` by their place in a line of `history.jsonl`."""
    metrics = {f"test.{name}": name for name in task.metric_words}
    score = {f"validation.{task.score}": f"validation_{task.score}"}
    predictions = {f"diagnostics.{name}": name for name in task.prediction_names}
    return {"round": "round"} | metrics | score | _COLUMNS | predictions


@dataclass(frozen=True)
class RunData:
    """The data of one run folder. Missing parts are None or empty."""

    settings: Settings | None
    state: str | None
    reason: str | None
    rounds: tuple[RoundRecord, ...]
    """Sorted by number; round 0 is the initial model."""
    problems: tuple[str, ...] = ()
    """The files and lines that could not be read, in words."""
    label_names: tuple[str, ...] = ()
    """In the order of their numbers; empty if they are not known."""
    test_counts: tuple[int, ...] = ()
    """Test examples of each label; empty if they are not known."""
    approvals: Mapping[str, str] = field(default_factory=dict)
    """The reason why a site of a deployment does not take part, by site; empty if it does."""
    personal: PersonalRecord | None = None
    """The personal models of a simulation's clients; None if there are none."""

    @property
    def task(self) -> Task:
        """The task of the run."""
        return task_of(self.settings)

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing evenly, 1 / number of labels; None if they are not known."""
        if not self.label_names:
            return None
        return 1 / len(self.label_names)

    @property
    def largest_share(self) -> float | None:
        """Accuracy of always naming the most frequent test label; `chance` without test counts."""
        if not any(self.test_counts):
            return self.chance
        return max(self.test_counts) / sum(self.test_counts)

    @property
    def last_round(self) -> int:
        """Number of the last whole round, 0 before the first."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def best(self) -> RoundRecord | None:
        """The round whose model is kept; None if no validation part chose one."""
        return best_of(self.rounds, self.task)

    @cached_property
    def looks(self) -> tuple[Any, ...]:
        """The predictions of each round; empty if the history has no diagnostics."""
        return tuple(scored_rounds(self.rounds, self.task))

    @cached_property
    def collapses(self) -> tuple[Collapse, ...]:
        """Every flag of the run; empty if the settings, which hold the rule, are not known."""
        if self.settings is None:
            return ()
        return collapses_in(self.rounds, self.task, self.settings.train.collapse_rounds)

    @property
    def is_ended_by_collapse(self) -> bool:
        """True if `train.on_collapse=stop` ended the run."""
        if self.settings is None or self.settings.train.on_collapse != "stop":
            return False
        return bool(self.collapses) and self.collapses[-1].is_up

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each round, with the columns of `columns_of`; NaN if a round has no value."""
        lists = {"clients", "left_out", "sites"}
        lines = pd.json_normalize(
            [record.model_dump(exclude=lists) for record in self.rounds]
        )
        columns = columns_of(self.task)
        table = lines.reindex(columns=list(columns)).rename(columns=columns)
        is_list = [name for name in table if table[name].map(_is_list).any()]
        numbers = table.columns.difference(["round", *is_list])
        return table.astype(dict.fromkeys(numbers, float) | {"round": int})

    @cached_property
    def clients(self) -> pd.DataFrame:
        """A row for each round and client: `round`, `name`, and the fields of `ClientRecord`."""
        rows = [
            {"round": record.round, "name": client.name, **client.model_dump()}
            for record in self.rounds
            for client in record.clients
        ]
        columns = ["round", "name", *ClientRecord.model_fields]
        table = pd.DataFrame(rows, columns=columns)
        numbers = table.columns.difference(["round", "name", "site"])
        return table.astype(dict.fromkeys(numbers, float))


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def load_run(folder: Path) -> RunData:
    """Read one run folder. A missing or damaged file is named in `problems`, not raised."""
    run = RunFolder(folder)
    problems: list[str] = []

    def attempt(file: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except ValidationError:
            problems.append(f"{file} cannot be read")
        except (ValueError, TypeError) as error:
            problems.append(f"{file} cannot be read: {error}")
        return otherwise

    settings = attempt("settings.json", run.settings, None)
    if settings is None and not problems:
        problems.append("settings.json is missing")
    no_status: dict[str, str] = {}
    no_approvals: dict[str, dict[str, str]] = {}
    status = attempt("status.json", run.status, no_status)
    labels = attempt("labels.json", run.labels, Labels())
    approvals = attempt("approvals.json", run.approvals, no_approvals)
    rounds = _read_rounds(run, problems)
    personal = attempt(PERSONAL, lambda: PersonalRecord.read(folder), None)
    names = labels.label_names
    if names is None and settings is not None:
        names = settings.data.label_names
    state = status.get("state")
    return RunData(
        settings=settings,
        state=None if state == "pending" else state,
        reason=status.get("reason") or None,
        rounds=rounds,
        problems=tuple(problems),
        label_names=names or (),
        test_counts=labels.test_counts or (),
        approvals={
            name: decision.get("words", "")
            for name, decision in sorted(approvals.items())
        },
        personal=personal,
    )


def _read_rounds(run: RunFolder, problems: list[str]) -> tuple[RoundRecord, ...]:
    rounds: dict[int, RoundRecord] = {}
    for number, line in enumerate(run.history_lines(), start=1):
        try:
            record = RoundRecord.read(line)
        except ValueError:
            problems.append(
                f"history.jsonl line {number} cannot be read and was left out"
            )
        else:
            rounds[record.round] = record
    return tuple(rounds[number] for number in sorted(rounds))
