"""What a sweep and its runs found out, as frozen values; `result_files.py` reads them from folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from common.settings import Settings
from server.diagnostics.collapse import Collapse, Look, find_collapses

Status = Literal["pending", "running", "finished", "failed", "stopped"]
Outcome = Literal["reached", "not reached", "not yet", "failed", "collapsed", "no baseline"]

DEFAULT_TARGET_FRACTION = 0.9

T = TypeVar("T")


@dataclass(frozen=True)
class ClientRound:
    """What one client did in one round."""

    client: str
    num_examples: int | None
    loss: float | None
    update_norm: float | None
    cosine_to_mean: float | None
    seconds: float | None
    head_norm: float | None = None
    cosine_to_others: float | None = None
    total_steps: int | None = None
    """Optimiser steps of this client in the run so far."""
    site: str | None = None
    """Its name, where the client is a site."""

    @property
    def name(self) -> str:
        """How a reader knows it."""
        return self.site or self.client


@dataclass(frozen=True)
class Updates:
    """What the updates of one round tell together."""

    mean_norm: float
    norm_ratio: float
    head_norm: float
    body_norm: float


@dataclass(frozen=True)
class Round:
    """One line of `history.jsonl`; None stands where the line says null, NaN or nothing."""

    number: int
    accuracy: float | None
    macro_f1: float | None
    test_loss: float | None
    train_loss: float | None
    clients: tuple[ClientRound, ...]
    seconds: dict[str, float]
    """Seconds for `train`, `aggregate`, `evaluate` and `total`, as far as written."""
    bytes_down: int
    bytes_up: int
    num_test: int | None = None
    """Test examples behind the accuracy."""
    updates: Updates | None = None
    """None in round 0, and in a history without diagnostics."""
    look: Look | None = None
    """What is predicted; None in a history without diagnostics."""


@dataclass(frozen=True)
class Run:
    """One run folder; whatever is missing in it is None or empty."""

    settings: Settings | None
    num_labels: int | None
    state: str | None
    reason: str | None
    rounds: tuple[Round, ...]
    """In the order of their numbers; round 0 is the initial model."""
    problems: tuple[str, ...]
    """What could not be read, in words."""
    test_counts: tuple[int, ...] = ()
    """Test examples of each label; empty where the run does not tell."""
    label_names: tuple[str, ...] = ()
    """In the order of their numbers, where they are known."""

    @property
    def looks(self) -> list[Look]:
        """What is predicted, round by round."""
        return [entry.look for entry in self.rounds if entry.look is not None]

    @cached_property
    def collapses(self) -> tuple[Collapse, ...]:
        """Every flag of the run; empty where the settings, and with them its rule, are not known."""
        return find_collapses(self.looks, self.settings.train.collapse_rounds) if self.settings else ()

    @property
    def is_ended_by_collapse(self) -> bool:
        """Whether `train.on_collapse=stop` ended the run."""
        is_up = bool(self.collapses) and self.collapses[-1].is_up
        return is_up and self.settings is not None and self.settings.train.on_collapse == "stop"

    @property
    def last_round(self) -> int:
        """Number of the last whole round, 0 before the first."""
        return self.rounds[-1].number if self.rounds else 0

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing evenly: 1 / number of labels."""
        return 1 / self.num_labels if self.num_labels else None

    @property
    def largest_share(self) -> float | None:
        """Accuracy of always naming the label most test texts have; `chance` where the run does not tell."""
        return max(self.test_counts) / sum(self.test_counts) if any(self.test_counts) else self.chance


@dataclass(frozen=True)
class Cell:
    """One line of `sweep.csv` with its run folder, where there is one."""

    model: str
    data: str
    num_clients: int
    seed: int
    status: Status
    accuracy: float | None
    """Test accuracy at the budget."""
    baseline: float | None
    """Test accuracy of K = 1 with the same model, data and seed at the budget."""
    rounds_to_target: int | None
    run: Run | None
    arm: str = ""
    """Arm of the sweep; empty where it has none."""

    @property
    def outcome(self) -> Outcome:
        """What became of the target; `not yet` may still change, `collapsed` was ended before it could."""
        if self.rounds_to_target is not None:
            return "reached"
        if self.status == "failed":
            return "failed"
        if self.status != "finished":
            return "not yet"
        if self.run is not None and self.run.is_ended_by_collapse:
            return "collapsed"
        if self.baseline is None:
            return "no baseline"
        if self.run is None or self.run.settings is None:
            return "not reached"
        # A learning rate that has decayed to zero by the budget ends the run there.
        data, constant = self.run.settings.data, self.run.settings.train.schedule == "constant"
        limit = data.second_threshold_rounds if constant else data.budget_rounds
        return "not reached" if self.run.last_round >= limit else "not yet"


@dataclass(frozen=True)
class Sweep:
    """All cells of a sweep in the order of `sweep.csv`."""

    name: str
    cells: tuple[Cell, ...]
    target_fraction: float = DEFAULT_TARGET_FRACTION
    """Share of the baseline that a cell has to reach."""

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Models in the order they first appear."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))

    @cached_property
    def data_sets(self) -> tuple[str, ...]:
        """Data sets in the order they first appear."""
        return tuple(dict.fromkeys(cell.data for cell in self.cells))

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Arms in the order they first appear; empty where the sweep has none."""
        return tuple(dict.fromkeys(cell.arm for cell in self.cells if cell.arm))

    @cached_property
    def client_counts(self) -> tuple[int, ...]:
        """Every K, ascending."""
        return tuple(sorted({cell.num_clients for cell in self.cells}))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Every seed, ascending."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    def group(self, model: str, data: str, num_clients: int) -> tuple[Cell, ...]:
        """The seeds of one model × data × K."""
        wanted = (model, data, num_clients)
        return tuple(cell for cell in self.cells if (cell.model, cell.data, cell.num_clients) == wanted)

    def chance(self, data: str) -> float | None:
        """Accuracy of guessing evenly; None until a run of this data set has named its labels."""
        return self._first(data, lambda run: run.chance)

    def budget(self, data: str) -> int | None:
        """Rounds at which accuracies are compared; None until a run has written its settings."""
        return self._first(data, lambda run: run.settings.data.budget_rounds if run.settings else None)

    def second_threshold(self, data: str) -> int | None:
        """Rounds after which a target counts as not reached; None as for `budget`."""
        return self._first(
            data, lambda run: run.settings.data.second_threshold_rounds if run.settings else None
        )

    def _first(self, data: str, read: Callable[[Run], T | None]) -> T | None:
        found = (read(cell.run) for cell in self.cells if cell.data == data and cell.run)
        return next((value for value in found if value is not None), None)
