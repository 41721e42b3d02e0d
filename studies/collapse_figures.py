"""The figures of the study of the collapse."""

from __future__ import annotations

from math import inf, sqrt
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from wardround.server.report import figures
from wardround.server.report.figures import (
    Drawing,
    draw_nothing_yet,
    line_style,
    panel_row,
    styled,
)
from wardround.server.report.names import joined
from wardround.server.report.sweep import SweepData


@styled
def draw_rounds(plain: pd.DataFrame) -> Drawing:
    """Draw rounds to the target by K, a line for each arm; a cross: not reached.

    Args:
        plain: curves of the runs without a remedy.
    """
    counts = sorted(plain["num_clients"].unique().tolist())
    arms = list(plain["arm"].unique())
    figure, (axes,) = panel_row(["Rounds to the target"], 7.0, 4.2)
    figures.client_axis(axes, counts)
    limit = int(plain["limit"].max()) if counts else 1
    for index, (_, runs) in enumerate(plain.groupby("arm", sort=False)):
        line = line_style(index)
        aside = runs["num_clients"] * 2 ** (0.06 * (index - (len(arms) - 1) / 2))
        height = runs["reached"].clip(upper=limit + 1)
        never = runs["reached"] == inf
        axes.plot(
            aside[~never],
            height[~never],
            line["marker"],
            color=line["color"],
            alpha=0.5,
            markersize=4,
        )
        axes.plot(
            aside[never],
            height[never],
            "x",
            mec=line["color"],
            markersize=7,
            markeredgewidth=2,
        )
        means = height.groupby(aside).mean()
        axes.plot(
            means.index,
            means,
            color=line["color"],
            linestyle=line["linestyle"],
            linewidth=1.5,
        )
    if counts:
        axes.set_yscale("log", base=2)
        figures.draw_level(axes, limit + 1, f"not within {limit} rounds", above=True)
        axes.set_ylim(0.8, (limit + 1) * 1.5)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        draw_nothing_yet(axes)
    figures.line_legend(figure, arms)
    alt = (
        f" by number of clients ({joined(counts)}), for {joined(arms)}: the numbers are in the "
        "verdicts."
    )
    return figures.finish(
        figure, "study_rounds", "Rounds until the target accuracy", alt
    )


WHY = {
    "head_length": "Length of the head",
    "norm_ratio": "Norm of the mean update over the mean norm",
    "cosine": "Cosine of an update to the others'",
}
"""Diagnostics that are drawn by round."""


@styled
def draw_why(sweep: SweepData, plain: pd.DataFrame) -> Drawing:
    """Draw, for each arm at the largest K, the mean over its seeds by round.

    Args:
        plain: curves of the runs without a remedy.
    """
    arms = list(plain["arm"].unique())
    k = 0
    if arms:
        k = int(plain["num_clients"].max())
        plain = plain[plain["num_clients"] == k]
    figure, panels = panel_row(list(WHY.values()), 4.4)
    for index, arm in enumerate(arms):
        runs = [
            sweep.cells.loc[cell, "run"] for cell in plain.index[plain["arm"] == arm]
        ]
        if not runs:
            continue
        for axes, key in zip(panels, WHY, strict=True):
            by_round = [
                [_diagnostic(record, key) for record in run.rounds] for run in runs
            ]
            means = pd.DataFrame(
                [pd.Series(values, dtype=float) for values in by_round]
            ).mean()
            axes.plot(
                means, **line_style(index) | {"markevery": max(1, len(means) // 8)}
            )
    for axes in panels:
        axes.set_xlabel("communication round")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if not arms:
            draw_nothing_yet(axes)
    figures.line_legend(figure, arms)
    if arms:
        figures.draw_level(panels[1], 1 / sqrt(k), "independent noise")
    alt = f" at K = {k}, by round, for {joined(arms)}."
    return figures.finish(
        figure, "study_why", "Length of the head and agreement of the updates", alt
    )


def _diagnostic(record: Any, key: str) -> float | None:
    if key != "cosine":
        value: float | None = getattr(record.diagnostics, key)
        return value
    cosines = [
        client.cosine_to_others
        for client in record.clients
        if client.cosine_to_others is not None
    ]
    return fmean(cosines) if cosines else None
