"""What a study of arms compares: learning curves, and which of them differ in one switch alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import numpy as np

from common.data.batches import count_steps
from server.report.results import Cell, Run, Sweep

STANDARD_ERRORS = 2.0
"""A run has left chance when it beats the largest label's share by more than this many standard errors."""


@dataclass(frozen=True)
class Curve:
    """One cell's test accuracy from round 0 on, without a gap."""

    name: str
    """The arm, with model and data set where the sweep has several."""
    num_clients: int
    flat: Mapping[str, object]
    """Settings as `group.key`, without those that change no number."""
    accuracies: tuple[float, ...]
    """After round 0, 1, 2 …"""
    steps: tuple[int, ...]
    """Optimiser steps each client has made by then; of several clients the largest count."""
    chance: float
    """Share of the largest label in the test texts."""
    threshold: float
    """Accuracy above which the run has left chance."""

    @property
    def num_rounds(self) -> int:
        """The last round."""
        return len(self.accuracies) - 1

    def left_chance(self) -> int | None:
        """First trained round above the threshold; None where there is none."""
        above = (r for r, accuracy in enumerate(self.accuracies) if r > 0 and accuracy > self.threshold)
        return next(above, None)

    def mean_accuracy(self, num_rounds: int) -> float:
        """Mean over rounds 1 to `num_rounds`: the area under the curve, divided by its width."""
        return fmean(self.accuracies[1 : num_rounds + 1])

    def is_like(self, other: Curve, changed: Mapping[str, object]) -> bool:
        """Whether `other` has this curve's settings but for `changed`, which it has as written there."""
        return {**self.flat, **changed} == other.flat


@dataclass(frozen=True)
class Pair:
    """Two curves of the same K, data and seed; `other` has one switch turned."""

    base: Curve
    other: Curve

    @property
    def num_clients(self) -> int:
        """K of both."""
        return self.base.num_clients

    @property
    def num_rounds(self) -> int:
        """Rounds that both have."""
        return min(self.base.num_rounds, self.other.num_rounds)

    @property
    def difference(self) -> float:
        """Mean accuracy of `other` minus that of `base`, over the rounds both have."""
        return self.other.mean_accuracy(self.num_rounds) - self.base.mean_accuracy(self.num_rounds)

    @property
    def order(self) -> int:
        """1 where `other` leaves chance later than `base`, -1 where earlier, 0 in the same round or never."""
        base, other = (curve.left_chance() or np.inf for curve in (self.base, self.other))
        return int(other > base) - int(other < base)


def curves_of(sweep: Sweep) -> list[Curve]:
    """The curves of all cells that have one."""
    return [curve for cell in sweep.cells if (curve := curve_of(sweep, cell)) is not None]


def curve_of(sweep: Sweep, cell: Cell) -> Curve | None:
    """The cell's curve; None before its first round, or where its files do not tell enough."""
    run = cell.run
    if run is None or run.settings is None or run.last_round == 0:
        return None
    accuracies = tuple(entry.accuracy for entry in run.rounds if entry.accuracy is not None)
    chance, num_test = run.largest_share, run.rounds[-1].num_test
    if len(accuracies) != run.last_round + 1 or chance is None or not num_test:
        return None
    return Curve(
        name=_name(sweep, cell),
        num_clients=cell.num_clients,
        flat=run.settings.identity() if run.settings else {},
        accuracies=accuracies,
        steps=steps_so_far(run),
        chance=chance,
        threshold=above_chance(chance, num_test),
    )


def _name(sweep: Sweep, cell: Cell) -> str:
    parts = [cell.model] * (len(sweep.models) > 1) + [cell.data] * (len(sweep.data_sets) > 1)
    return " ".join([*parts, cell.arm])


def above_chance(chance: float, num_test: int) -> float:
    """`chance` plus STANDARD_ERRORS binomial standard errors, sqrt(p (1 - p) / n)."""
    return chance + STANDARD_ERRORS * sqrt(chance * (1 - chance) / num_test)


def steps_so_far(run: Run) -> tuple[int, ...]:
    """Optimiser steps of one client by the end of each round, as the history tells or settings imply."""
    assert run.settings is not None
    train = run.settings.train
    steps = [0]
    for entry in run.rounds[1:]:
        told = [client.total_steps for client in entry.clients if client.total_steps is not None]
        sizes = [client.num_examples for client in entry.clients if client.num_examples]
        made = train.local_epochs * max((count_steps(size, train) for size in sizes), default=0)
        steps.append(max(told, default=steps[-1] + made))
    return tuple(steps)


def pairs_of(
    curves: Sequence[Curve], changed: Mapping[str, object], base: Mapping[str, object]
) -> list[Pair]:
    """Every curve with the values `base`, beside the one that differs from it in `changed` alone."""
    return [
        Pair(one, other)
        for one in curves
        if all(one.flat[key] == value for key, value in base.items())
        for other in curves
        if one.is_like(other, changed)
    ]


def by_clients(pairs: Iterable[Pair]) -> dict[int, list[Pair]]:
    """The pairs of each K, ascending."""
    groups: dict[int, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.num_clients):
        groups.setdefault(pair.num_clients, []).append(pair)
    return groups


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean accuracy of several seeds, as far as all of them go."""
    num_rounds = min(curve.num_rounds for curve in curves)
    first = curves[0]
    columns = zip(*(curve.accuracies[: num_rounds + 1] for curve in curves), strict=True)
    accuracies = tuple(fmean(column) for column in columns)
    steps = first.steps[: num_rounds + 1]
    return Curve(first.name, first.num_clients, first.flat, accuracies, steps, first.chance, first.threshold)
