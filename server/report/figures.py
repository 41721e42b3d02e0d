"""Figures of sweeps and runs, in colours that a colour-blind reader can tell apart, never colour alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from wardround.server.diagnostics.collapse import label_name
from wardround.server.report.names import (
    display_name,
    joined,
)
from wardround.server.report.run import RunData
from wardround.server.report.sweep import (
    Group,
    Spread,
    SweepData,
)

# Okabe and Ito 2008, without yellow (too faint on white).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (9, 2)),
)
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
GREY = "#595959"
_MOST_CLASSES = 6
_IN_TABLE = "the numbers are in the result table"

styled = style.context(Path(__file__).parent / "templates/figures.mplstyle")
"""Decorator of every function that draws."""


@dataclass(frozen=True)
class Drawing:
    """One figure, ready to be written; the same input gives the same bytes."""

    name: str
    title: str
    alt: str
    png: bytes
    svg: bytes
    width: int
    """Natural width in CSS pixels."""


def sweep_figures(sweep: SweepData) -> list[Drawing]:
    """Figures 1 to 3 of the paper."""
    return [draw_accuracy(sweep), draw_rounds(sweep), draw_curves(sweep)]


def run_figures(run: RunData) -> list[Drawing]:
    """The curve, then the updates and the predictions as far as the history tells of them."""
    drawings = [draw_run(run)]
    if run.table["mean_update_norm"].notna().any():
        drawings.append(draw_updates(run))
        drawings += [draw_predictions(run)] if run.looks else []
    return drawings


def panel_row(
    titles: Sequence[str],
    width: float = 4.2,
    height: float = 3.5,
    columns: int = 3,
    label: str = "",
) -> tuple[Figure, list[Axes]]:
    """A panel of `width` × `height` inches for each title, `columns` side by side; a single one is wider.

    Args:
        label: of the vertical axis, which panels side by side share.
    """
    columns = min(max(len(titles), 1), columns)
    rows = -(-max(len(titles), 1) // columns)
    size = (
        (6.2 if columns == 1 else width) * columns,
        height * rows + 0.45,
    )  # with room for a legend below
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    for number, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        axes.set(title=title, ylabel="" if number % columns else label)
    return figure, panels[: len(titles)]


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the index-th series."""
    looks = {"color": COLORS, "marker": MARKERS, "linestyle": DASHES}
    return {key: values[index % len(values)] for key, values in looks.items()}


def bar_style(index: int) -> dict[str, Any]:
    """Colour and hatch of the index-th series."""
    return {
        "facecolor": COLORS[index % 7],
        "hatch": HATCHES[index % 7],
        "edgecolor": "white",
    }


def draw_chance(axes: Axes, chance: float | None, at: float = 0.01) -> None:
    """Dashed line at chance; `at` as for `draw_level`."""
    if chance is not None:
        draw_level(axes, chance, f"chance {chance:.3g}", at)


def draw_level(
    axes: Axes, level: float, name: str, at: float = 0.01, above: bool = False
) -> None:
    """Dashed line, named just below it, where no curve that sits on it can hide the name.

    Args:
        at: where the name stands, as a share of the panel's width.
        above: dotted instead, and named above it: a limit.
    """
    dashes = (0, (1, 2) if above else (4, 3))
    axes.axhline(level, color=GREY, linestyle=dashes, linewidth=1.1, zorder=1)
    place: dict[str, Any] = {
        "ha": "left" if at < 0.5 else "right",
        "va": "bottom" if above else "top",
    }
    note(
        axes,
        name,
        (at, level),
        (0, 3 if above else -3),
        xycoords=axes.get_yaxis_transform(),
        **place,
    )


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    **more: Any,
) -> None:
    """Small words at a place in the panel, moved by `offset` points."""
    words: dict[str, Any] = {"fontsize": 8.5, "color": GREY}
    axes.annotate(text, at, offset, textcoords="offset points", **words | more)


def draw_nothing_yet(axes: Axes, text: str = "no result yet") -> None:
    """Say in the panel that it is empty, and why."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY
    )


def client_axis(axes: Axes, counts: Sequence[int]) -> None:
    """K on a logarithmic axis."""
    axes.set_xlabel("number of clients K")
    if counts:
        axes.set_xscale("log", base=2)
        axes.set_xlim(counts[0] / 1.35, counts[-1] * 1.35)
        axes.set_xticks(counts, [str(k) for k in counts])
        axes.minorticks_off()


def round_axis(axes: Axes, last_round: int) -> None:
    """Rounds from 0 to the last, at whole numbers."""
    last = max(last_round, 1)
    axes.set(xlabel="communication round", xlim=(-0.02 * last, last * 1.02))
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10])
    )


def line_legend(
    figure: Figure, names: Sequence[object], title: str | None = None
) -> None:
    """The legend of lines in the style of their order."""
    add_legend(
        figure,
        [
            Line2D([], [], label=str(name), **line_style(i))
            for i, name in enumerate(names)
        ],
        title,
    )


def add_legend(
    figure: Figure,
    handles: Sequence[Any],
    title: str | None = None,
    columns: int | None = None,
) -> None:
    """Legend under all panels, so that it never hides data. Args: columns: None is as many as find room."""
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    inches = max(1.35, 0.6 + 0.085 * longest)  # a name's line or patch, and its letters
    columns = columns or max(1, min(len(handles), int(figure.get_figwidth() / inches)))
    if handles:
        figure.legend(
            handles=list(handles),
            title=title,
            loc="outside lower center",
            ncols=columns,
        )


def finish(figure: Figure, name: str, title: str, alt: str) -> Drawing:
    """PNG and SVG, without dates or program versions."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    alt = f"{title}{alt}"
    return Drawing(
        name,
        title,
        alt,
        png.getvalue(),
        svg.getvalue(),
        round(figure.get_figwidth() * 96),
    )


@styled
def draw_accuracy(sweep: SweepData) -> Drawing:
    """Figure 1: test accuracy at the budget against K, one panel a data set, one line a model."""
    budgets = {data: sweep.budget(data) for data in sweep.data_sets}
    rounds = {
        data: "" if budget is None else f" (round {budget})"
        for data, budget in budgets.items()
    }
    titles = [display_name(data) + rounds[data] for data in sweep.data_sets]
    figure, panels = panel_row(titles, label="test accuracy at the budget")
    for axes, data in zip(panels, sweep.data_sets, strict=True):
        known = [
            group for group in sweep.groups() if group.data == data and group.accuracy
        ]
        for index, model in enumerate(sweep.models):
            of_model = [group for group in known if group.model == model]
            points = [
                (group.num_clients, spread)
                for group in of_model
                if (spread := group.accuracy)
            ]
            # A few percent aside, so that models with equal results stay visible.
            aside = 2 ** (0.07 * (index - (len(sweep.models) - 1) / 2))
            x, y = (
                [k * aside for k, _ in points],
                [accuracy.mean for _, accuracy in points],
            )
            if any(accuracy.count > 1 for _, accuracy in points):
                _draw_whiskers(
                    axes,
                    x,
                    [accuracy for _, accuracy in points],
                    line_style(index)["color"],
                )
            axes.plot(x, y, **line_style(index))
            for at, (_, accuracy) in zip(
                x, points if len(sweep.models) == 1 else (), strict=False
            ):
                words = {"ha": "center", "fontsize": 10, "color": "black"}
                note(axes, f"{accuracy.mean:.3f}", (at, accuracy.high), (0, 8), **words)
        if not known:
            draw_nothing_yet(axes)
        draw_chance(axes, sweep.chance(data))
        axes.set_ylim(0, 1.05)
        client_axis(axes, sweep.client_counts)
    line_legend(figure, [display_name(model) for model in sweep.models])
    title = "Figure 1. Accuracy at the budget against the number of clients"
    models, data_sets = (
        joined(map(display_name, names)) for names in (sweep.models, sweep.data_sets)
    )
    alt = f": {models}, one panel a data set ({data_sets}); {_IN_TABLE}."
    return finish(figure, "figure1_accuracy", title, alt)


@styled
def draw_rounds(sweep: SweepData) -> Drawing:
    """Figure 2: bars of rounds to the target; a cell that did not reach it is named and has no bar."""
    # One model needs no legend: the title names it.
    only = f"{display_name(sweep.models[0])} on " if len(sweep.models) == 1 else ""
    titles = [only + display_name(data) for data in sweep.data_sets]
    figure, panels = panel_row(titles, label="communication rounds")
    counts, slot = sweep.client_counts, min(0.84 / max(len(sweep.models), 1), 0.5)
    for axes, data in zip(panels, sweep.data_sets, strict=True):
        groups = [group for group in sweep.groups() if group.data == data]
        limit = sweep.second_threshold(data)
        highest = max(
            (group.rounds.high for group in groups if group.rounds), default=0
        )
        axes.set_xticks(range(len(counts)), [str(k) for k in counts])
        axes.set(xlabel="number of clients K", xlim=(-0.6, len(counts) - 0.4))
        axes.set_ylim(0, max(highest, limit or 0, 1) * 1.22)
        axes.grid(visible=False, axis="x")
        if limit is not None:
            draw_level(axes, limit, f"second threshold: {limit} rounds", above=True)
        for group in groups:
            index = sweep.models.index(group.model)
            x = (
                counts.index(group.num_clients)
                + (index - (len(sweep.models) - 1) / 2) * slot
            )
            _draw_bar(
                axes,
                group,
                x,
                slot,
                index,
                is_crowded=len(counts) * len(sweep.models) > 8,
            )
    if len(sweep.models) > 1:
        add_legend(
            figure,
            [
                Patch(label=display_name(m), **bar_style(i))
                for i, m in enumerate(sweep.models)
            ],
        )
    title = (
        f"Figure 2. Rounds to reach {sweep.target_fraction:.0%} of the K = 1 accuracy"
    )
    data_sets = joined(map(display_name, sweep.data_sets))
    alt = (
        f": bars by number of clients, one panel a data set ({data_sets}); {_IN_TABLE}."
    )
    return finish(figure, "figure2_rounds_to_target", title, alt)


def _draw_whiskers(
    axes: Axes, x: Sequence[float], spreads: Sequence[Spread], color: str
) -> None:
    lengths = np.array(
        [(spread.mean - spread.low, spread.high - spread.mean) for spread in spreads]
    ).T
    axes.errorbar(
        x,
        [spread.mean for spread in spreads],
        lengths,
        fmt="none",
        ecolor=color,
        linewidth=1.2,
    )


def _draw_bar(
    axes: Axes, group: Group, x: float, slot: float, index: int, is_crowded: bool
) -> None:
    words: dict[str, Any] = {
        "fontsize": 7.5 if is_crowded else 9.5,
        "ha": "center",
        "va": "bottom",
    }
    rounds = group.rounds
    if rounds is None:
        foot, color = 0.02 * axes.get_ylim()[1], line_style(index)["color"]
        axes.plot(
            x,
            foot,
            "x",
            color=color,
            markeredgecolor=color,
            markeredgewidth=2,
            zorder=4,
        )
        note(
            axes,
            group.words("outcome"),
            (x, foot),
            (0, 7),
            rotation=90 if is_crowded else 0,
            **words,
        )
        return
    axes.bar([x], [rounds.mean], width=slot * 0.92, linewidth=0.5, **bar_style(index))
    if rounds.count > 1:
        _draw_whiskers(axes, [x], [rounds], "black")
    is_part = rounds.count < len(group.cells)
    label = format(rounds.mean, ".0f" if is_crowded else ".3g")
    label += f" ({rounds.count} of {len(group.cells)} seeds)" * is_part
    words |= {"rotation": 90 if is_part and is_crowded else 0, "color": "black"}
    note(axes, label, (x, rounds.high), (0, 2), **words)


@styled
def draw_curves(sweep: SweepData) -> Drawing:
    """Figure 3: test accuracy against round, rows = data sets, columns = models, one line a K."""
    places = [(data, model) for data in sweep.data_sets for model in sweep.models]
    titles = [
        f"{display_name(model)} on {display_name(data)}" for data, model in places
    ]
    columns = max(len(sweep.models), 1)
    height = 3.6 if len(sweep.data_sets) < 2 else 2.7
    figure, panels = panel_row(titles, 3.9, height, columns, "test accuracy")
    rounds = sweep.rounds
    for number, (axes, (data, model)) in enumerate(zip(panels, places, strict=True)):
        of_data = rounds[rounds["data"] == data]
        of_model = of_data[of_data["model"] == model]
        for index, num_clients in enumerate(sweep.client_counts):
            of_k = of_model[of_model["num_clients"] == num_clients]
            _draw_seeds(
                axes,
                of_k.pivot_table(index="round", columns="seed", values="accuracy"),
                index,
            )
        if not axes.lines:
            draw_nothing_yet(axes)
        draw_chance(
            axes, sweep.chance(data), at=0.96
        )  # clear of a budget that is the last round
        axes.set_ylim(0, 1.05)
        last, budget = (
            max(of_data["round"].max(), 1) if len(of_data) else 1,
            sweep.budget(data),
        )
        round_axis(axes, last)
        if number < len(panels) - columns:
            axes.set_xlabel("")
        if budget is not None and 0 < budget <= last:
            axes.axvline(budget, color=GREY, linewidth=0.9, zorder=1)
            note(
                axes,
                "budget",
                (budget, 0),
                (-3, 3),
                ha="right",
                va="bottom",
                fontsize=8,
            )
    line_legend(figure, sweep.client_counts, "number of clients K")
    title = "Figure 3. Test accuracy against communication round"
    models, data_sets = (
        joined(map(display_name, names)) for names in (sweep.models, sweep.data_sets)
    )
    clients = joined(sweep.client_counts)
    alt = f": one line a K ({clients}), one row a data set ({data_sets}), one column a model ({models})."
    return finish(figure, "figure3_curves", title, alt)


def _draw_seeds(axes: Axes, curves: pd.DataFrame, index: int) -> None:
    """Mean of the seeds with a band from lowest to highest, as far as all of them go; then each alone.

    Args:
        curves: accuracy, one row a round, one column a seed.
    """
    common, look = curves.dropna(), line_style(index)
    if not len(common):
        return
    every = max(1, len(common) // 8)
    start = min(index * every // 6 if every > 5 else 0, len(common) - 1)
    means = common.mean(axis=1)
    axes.plot(means, **look | {"marker": ""})
    # Markers above all lines: where curves lie on one another, each still shows.
    axes.plot(means, markevery=(start, every), zorder=3, **look | {"linestyle": ""})
    if curves.shape[1] > 1:
        band = {"color": look["color"], "alpha": 0.18, "linewidth": 0}
        axes.fill_between(common.index, common.min(axis=1), common.max(axis=1), **band)
        axes.plot(
            curves.loc[common.index[-1] :], **look | {"marker": "", "linewidth": 0.8}
        )


@styled
def draw_run(run: RunData) -> Drawing:
    """Accuracy and loss of one run by round, side by side."""
    figure, (left, right) = panel_row(["Test accuracy and macro F1", "Loss"], width=5.0)
    rounds = run.table.set_index("round")
    for axes, name, column, index in (
        (left, "test accuracy", "accuracy", 0),
        (left, "macro F1", "macro_f1", 1),
        (right, "test loss", "test_loss", 0),
        (right, "training loss", "train_loss", 1),
    ):
        _plot(axes, rounds[column], name, index)
    for axes in (left, right):
        if not axes.lines:
            draw_nothing_yet(axes, "no round yet")
        _by_round(axes, run)
    left.set_ylim(0, 1.05)
    right.set_ylim(bottom=0)
    for collapse in run.collapses:
        left.axvspan(
            collapse.first - 0.5,
            collapse.last + 0.5,
            color=GREY,
            alpha=0.14,
            linewidth=0,
            zorder=0,
        )
    draw_chance(left, run.chance, at=0.99)
    title = "Accuracy and loss by round"
    return finish(figure, "curve", title, "; the last round's numbers are in the text.")


@styled
def draw_updates(run: RunData) -> Drawing:
    """What the updates of a run tell, round by round."""
    titles = (
        "Norm of the updates",
        "Agreement: norm of mean / mean of norms",
        "Cosine between updates",
        "Mean update: head against body",
        "Optimiser steps so far",
    )
    figure, panels = panel_row(titles, height=3.3)
    norms, ratio, cosines, parts, steps = panels
    rounds = run.table.dropna(subset="mean_update_norm").set_index("round")
    clients = run.clients[run.clients["round"].isin(rounds.index)]
    for axes, column in (
        (norms, "update_norm"),
        (cosines, "cosine_to_mean"),
        (steps, "total_steps"),
    ):
        # A faint line a client, which the caption explains.
        for _, curve in clients.groupby("client"):
            values = curve.set_index("round")[column].dropna()
            axes.plot(
                values,
                color=GREY,
                linewidth=0.8,
                alpha=0.4,
                marker="." if len(values) < 3 else "",
            )
    means = clients.drop(columns="name").groupby("round").mean(numeric_only=True)
    for axes, table, column, name, index in (
        (norms, rounds, "mean_update_norm", "mean update", 0),
        (ratio, rounds, "norm_ratio", "ratio", 0),
        (cosines, means, "cosine_to_mean", "to the mean", 0),
        (cosines, means, "cosine_to_others", "to the others", 1),
        (parts, rounds, "head_norm", "new head", 1),
        (parts, rounds, "body_norm", "body", 0),
        (steps, means, "total_steps", "mean over clients", 0),
    ):
        _plot(axes, table[column], name, index)
    for axes in panels:
        axes.set_ylim(bottom=0)
        _by_round(axes, run)
    ratio.set_ylim(0, 1.05)
    cosines.set_ylim(-1.05, 1.05)
    num_clients = len(clients[clients["round"] == rounds.index[-1]])
    if num_clients > 1:
        draw_level(
            ratio,
            1 / sqrt(num_clients),
            f"independent noise, 1/√{num_clients}",
            at=0.99,
        )
    title = "What the clients' updates tell"
    return finish(figure, "updates", title, f": {', '.join(titles)}, by round.")


@styled
def draw_predictions(run: RunData) -> Drawing:
    """Shares of the most predicted classes in the order of their numbers, others as one; the entropy."""
    titles = ("Share of the test predictions by class", "Entropy of the predictions")
    figure, (left, right) = panel_row(titles, width=5.0)
    shares = pd.DataFrame(
        [look.shares for look in run.looks], index=[look.round for look in run.looks]
    )
    num_classes = shares.shape[1]
    most = shares.sum().sort_values(ascending=False, kind="stable").index
    shown = sorted(most if num_classes <= _MOST_CLASSES + 1 else most[:_MOST_CLASSES])
    areas = shares[shown].set_axis(
        [label_name(run.label_names, label) for label in shown], axis=1
    )
    looks = [bar_style(index) for index in range(len(shown))]
    if len(shown) < num_classes:
        areas[f"{num_classes - len(shown)} others"] = 1 - areas.sum(axis=1)
        looks.append({"facecolor": GREY})
    for area, look in zip(
        left.stackplot(areas.index, areas.T, labels=areas.columns), looks, strict=True
    ):
        area.set(**{"edgecolor": "white", "linewidth": 0.5} | look)
    left.set_ylim(0, 1)
    _plot(
        right, run.table.set_index("round")["prediction_entropy"], "entropy (nats)", 0
    )
    most_even = log(num_classes)
    draw_level(
        right,
        most_even,
        f"all classes alike, ln {num_classes} = {most_even:.3g}",
        at=0.99,
    )
    right.set_ylim(0, 1.12 * most_even)
    for axes in (left, right):
        _by_round(axes, run, columns=3)
    title = "What the model predicts"
    names = ", ".join(run.label_names)
    return finish(
        figure,
        "predictions",
        title,
        f": share of the predictions by class ({names}), and entropy.",
    )


def _plot(axes: Axes, values: pd.Series, name: str, index: int) -> None:
    """A named line of values by round, where there are any."""
    known = values.dropna()
    if len(known):
        axes.plot(
            known,
            label=name,
            markevery=max(1, len(known) // 12),
            zorder=3,
            **line_style(index),
        )


def _by_round(axes: Axes, run: RunData, columns: int = 2) -> None:
    """The axis of rounds, and the panel's own legend under it."""
    round_axis(axes, run.last_round)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
