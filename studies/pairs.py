"""Learning curves of a sweep with arms, and pairs of runs that differ in one thing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from wardround.common.data.steps import count_steps
from wardround.common.tasks.label import LABEL
from wardround.server.report.figures import draw_chance
from wardround.server.report.run import RunData
from wardround.server.report.sweep import SweepData

NEUTRAL = {
    "train.head_learning_rate": None,
    "train.head_warmup_rounds": 0,
    "strategy.server_momentum": 0.0,
    "strategy.server_learning_rate": 1.0,
}
"""Settings of remedies, each with its neutral value."""


@dataclass(frozen=True)
class StudyAnswer:
    """A question with its verdict. The fields are the keys of `study.json`."""

    id: str
    question: str
    verdict: str
    numbers: dict[str, Any]
    explanation: str


_CURVE_COLUMNS = [
    "arm",
    "num_clients",
    "settings",
    "remedy",
    "accuracies",
    "steps",
    "chance",
    "last",
    "mean",
]


def learning_curves(sweep: SweepData) -> pd.DataFrame:
    """Return a row for each cell with trained rounds and readable files; the index is the cell's.

    Columns: arm (with model and data set if there are several), num_clients, settings (flat; only
    those that change numbers), remedy (in words), accuracies and steps (lists by round, from round
    0), chance (share of the largest label in the test texts), last (round), mean (accuracy over the
    trained rounds).
    """
    rows = {}
    num_models = sweep.cells.groupby("arm")["model"].nunique()
    for cell in sweep.cells.itertuples():
        run = cell.run
        if run is None or run.settings is None:
            continue
        accuracies = [
            score for record in run.rounds if (score := record.score(LABEL)) is not None
        ]
        if not 0 < run.last_round == len(accuracies) - 1:
            continue
        flat = run.settings.identity()
        names = [cell.arm]
        if len(sweep.data_sets) > 1:
            names.insert(0, cell.data)
        if num_models[cell.arm] > 1:
            names.insert(0, cell.model)
        remedies = [
            f"{key}={flat[key]}" for key, none in NEUTRAL.items() if flat[key] != none
        ]
        rows[cell.Index] = {
            "arm": " ".join(names),
            "num_clients": cell.num_clients,
            "settings": flat,
            "remedy": ", ".join(remedies),
            "accuracies": accuracies,
            "steps": steps_so_far(run),
            "chance": run.largest_share,
            "last": run.last_round,
            "mean": fmean(accuracies[1:]),
        }
    return pd.DataFrame(list(rows.values()), list(rows), _CURVE_COLUMNS)


def steps_so_far(run: RunData) -> list[int]:
    """Return the optimiser steps of a client up to the end of each round, from round 0.

    They come from the history, or else from the settings. Of several clients the largest number
    counts.
    """
    assert run.settings is not None
    train = run.settings.train
    steps = [0]
    for record in run.rounds[1:]:
        totals = [c.total_steps for c in record.clients if c.total_steps is not None]
        sizes = [c.num_examples for c in record.clients if c.num_examples]
        per_epoch = max((count_steps(size, train) for size in sizes), default=0)
        estimate = steps[-1] + train.local_epochs * per_epoch
        steps.append(max(totals, default=estimate))
    return steps


def pair(
    bases: pd.DataFrame, others: pd.DataFrame, keys: Collection[str]
) -> pd.DataFrame:
    """Join each row of `bases` with the rows of `others` that have the same settings except `keys`.

    Columns: those of both, ending in `_base` and `_other`; num_clients; rounds (that both have);
    mean_base and mean_other over those rounds; difference of these two.
    """
    pairs = _with_key(bases, keys).merge(
        _with_key(others, keys),
        on=["same", "num_clients"],
        suffixes=("_base", "_other"),
    )
    pairs["rounds"] = pairs[["last_base", "last_other"]].min(axis=1)
    for side in ("base", "other"):
        curves = zip(pairs[f"accuracies_{side}"], pairs["rounds"], strict=True)
        pairs[f"mean_{side}"] = [
            fmean(accuracies[1 : num_rounds + 1]) for accuracies, num_rounds in curves
        ]
    return pairs.assign(difference=pairs["mean_other"] - pairs["mean_base"])


def _with_key(rows: pd.DataFrame, keys: Collection[str]) -> pd.DataFrame:
    """Add the columns `same` (the settings without `keys`, as text) and `cell` (the index)."""
    without = dict.fromkeys(keys)
    same = [json.dumps({**flat, **without}) for flat in rows["settings"]]
    return rows.assign(same=same, cell=rows.index)


def mean_by_round(curves: Iterable[Sequence[float]]) -> list[float]:
    """Return the mean accuracy by round, up to the end of the shortest curve."""
    return [fmean(accuracies) for accuracies in zip(*curves, strict=False)]


_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1, 2, 3 … degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean (Student's t); None for a single value."""
    if len(values) < 2:
        return None
    factor = _T[min(len(values) - 1, len(_T)) - 1]
    half = factor * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def accuracy_axes(axes: Axes, chance: float, against: str) -> None:
    """Show accuracy from 0 to 1, with chance. `against` is the label of the horizontal axis."""
    draw_chance(axes, chance, at=0.99)
    axes.set(ylim=(0, 1.05), xlabel=against, ylabel="test accuracy")
    if against == "communication round":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
