"""Learning curves of a sweep with arms, and pairs of them in which one thing differs."""

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
from wardround.server.report.figures import draw_chance
from wardround.server.report.run import RunData
from wardround.server.report.sweep import SweepData

NEUTRAL = {
    "train.head_learning_rate": None,
    "train.head_warmup_rounds": 0,
    "strategy.server_momentum": 0.0,
    "strategy.server_learning_rate": 1.0,
}
"""Remedies, each at the value that is none."""


@dataclass(frozen=True)
class Answer:
    """One question with its verdict; the fields are the keys of `study.json`."""

    id: str
    question: str
    verdict: str
    numbers: dict[str, Any]
    explanation: str


def learning_curves(sweep: SweepData) -> pd.DataFrame:
    """One row for each cell that has trained and whose files tell enough, under its number there.

    Columns: arm (with the model where it has several, the data set where the sweep has), num_clients,
    settings (flat, those that change a number), remedy (those it was given, in words), accuracies and steps
    (lists by round, from round 0), chance (share of the largest label in the test texts), last (round), mean
    (accuracy over the trained rounds).
    """
    rows, num_models = {}, sweep.cells.groupby("arm")["model"].nunique()
    for cell in sweep.cells.itertuples():
        run = cell.run
        accuracies = (
            [record.score for record in run.rounds if record.score is not None]
            if run
            else []
        )
        if (
            run is None
            or run.settings is None
            or not 0 < run.last_round == len(accuracies) - 1
        ):
            continue
        flat = run.settings.identity()
        names = [cell.model] * bool(num_models[cell.arm] > 1) + [cell.data] * (
            len(sweep.data_sets) > 1
        )
        given = [
            f"{key}={flat[key]}" for key, none in NEUTRAL.items() if flat[key] != none
        ]
        rows[cell.Index] = {
            "arm": " ".join([*names, cell.arm]),
            "num_clients": cell.num_clients,
            "settings": flat,
            "remedy": ", ".join(given),
            "accuracies": accuracies,
            "steps": steps_so_far(run),
            "chance": run.largest_share,
            "last": run.last_round,
            "mean": fmean(accuracies[1:]),
        }
    told = [
        *("arm", "num_clients", "settings", "remedy", "accuracies"),
        *("steps", "chance", "last", "mean"),
    ]
    return pd.DataFrame(list(rows.values()), list(rows), told)


def steps_so_far(run: RunData) -> list[int]:
    """Optimiser steps a client has made by the end of each round, as the history tells or settings imply.

    Of several clients the largest count.
    """
    assert run.settings is not None
    train, steps = run.settings.train, [0]
    for record in run.rounds[1:]:
        told = [
            client.total_steps
            for client in record.clients
            if client.total_steps is not None
        ]
        sizes = [
            client.num_examples for client in record.clients if client.num_examples
        ]
        made = train.local_epochs * max(
            (count_steps(size, train) for size in sizes), default=0
        )
        steps.append(max(told, default=steps[-1] + made))
    return steps


def pair(
    bases: pd.DataFrame, others: pd.DataFrame, keys: Collection[str]
) -> pd.DataFrame:
    """Every row of `bases` beside the rows of `others` that have its settings but for `keys`.

    Columns: those of both, ending in `_base` and `_other`; num_clients; rounds (that both have); mean_base
    and mean_other over those rounds; difference of these two.
    """
    bases, others = (
        rows.assign(
            same=[
                json.dumps({**flat, **dict.fromkeys(keys)}) for flat in rows["settings"]
            ],
            cell=rows.index,
        )
        for rows in (bases, others)
    )
    pairs = bases.merge(
        others, on=["same", "num_clients"], suffixes=("_base", "_other")
    )
    pairs["rounds"] = pairs[["last_base", "last_other"]].min(axis=1)
    for side in ("base", "other"):
        curves = zip(pairs[f"accuracies_{side}"], pairs["rounds"], strict=True)
        pairs[f"mean_{side}"] = [
            fmean(accuracies[1 : num_rounds + 1]) for accuracies, num_rounds in curves
        ]
    return pairs.assign(difference=pairs["mean_other"] - pairs["mean_base"])


def mean_by_round(curves: Iterable[Sequence[float]]) -> list[float]:
    """Mean accuracy, as far as all curves go."""
    return [fmean(accuracies) for accuracies in zip(*curves, strict=False)]


_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1, 2, 3 … degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean, by Student's t; None for a single value, which has none."""
    if len(values) < 2:
        return None
    factor = _T[min(len(values) - 1, len(_T)) - 1]
    half = factor * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def accuracy_axes(axes: Axes, chance: float, against: str) -> None:
    """Accuracy from 0 to 1, with chance, against what the horizontal axis is called."""
    draw_chance(axes, chance, at=0.99)
    axes.set(ylim=(0, 1.05), xlabel=against, ylabel="test accuracy")
    if against == "communication round":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
