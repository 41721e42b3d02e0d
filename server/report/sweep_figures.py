"""The figures of a sweep: accuracy, rounds to the target, and curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from wardround.server.report.figures import (
    GREY,
    Drawing,
    add_legend,
    bar_style,
    client_axis,
    draw_chance,
    draw_level,
    draw_nothing_yet,
    finish,
    line_legend,
    line_style,
    note,
    panel_row,
    round_axis,
    styled,
)
from wardround.server.report.names import (
    display_name,
    joined,
)
from wardround.server.report.sweep import (
    Group,
    Spread,
    SweepData,
)

_IN_TABLE = "the numbers are in the result table"


def sweep_figures(sweep: SweepData) -> list[Drawing]:
    """Return figures 1 to 3 of the paper."""
    return [draw_accuracy(sweep), draw_rounds(sweep), draw_curves(sweep)]


@styled
def draw_accuracy(sweep: SweepData) -> Drawing:
    """Draw figure 1: test accuracy at the budget by K; a panel for each data set, a line for
    each model."""
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
            # Shifted by a few percent, so that models with equal results stay visible.
            aside = 2 ** (0.07 * (index - (len(sweep.models) - 1) / 2))
            x = [k * aside for k, _ in points]
            y = [accuracy.mean for _, accuracy in points]
            if any(accuracy.count > 1 for _, accuracy in points):
                _draw_whiskers(
                    axes,
                    x,
                    [accuracy for _, accuracy in points],
                    line_style(index)["color"],
                )
            axes.plot(x, y, **line_style(index))
            if len(sweep.models) == 1:
                words = {"ha": "center", "fontsize": 10, "color": "black"}
                for at, (_, accuracy) in zip(x, points, strict=True):
                    place = (at, accuracy.high)
                    note(axes, f"{accuracy.mean:.3f}", place, (0, 8), **words)
        if not known:
            draw_nothing_yet(axes)
        draw_chance(axes, sweep.chance(data))
        axes.set_ylim(0, 1.05)
        client_axis(axes, sweep.client_counts)
    line_legend(figure, [display_name(model) for model in sweep.models])
    title = "Figure 1. Accuracy at the budget against the number of clients"
    models = joined(map(display_name, sweep.models))
    data_sets = joined(map(display_name, sweep.data_sets))
    alt = f": {models}, one panel a data set ({data_sets}); {_IN_TABLE}."
    return finish(figure, "figure1_accuracy", title, alt)


@styled
def draw_rounds(sweep: SweepData) -> Drawing:
    """Draw figure 2: bars of rounds to the target. A cell that did not reach it has its result,
    no bar."""
    # One model needs no legend: the title names it.
    only = f"{display_name(sweep.models[0])} on " if len(sweep.models) == 1 else ""
    titles = [only + display_name(data) for data in sweep.data_sets]
    figure, panels = panel_row(titles, label="communication rounds")
    counts = sweep.client_counts
    slot = min(0.84 / max(len(sweep.models), 1), 0.5)
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
        foot = 0.02 * axes.get_ylim()[1]
        color = line_style(index)["color"]
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
    """Draw figure 3: test accuracy by round; rows are data sets, columns models, lines K."""
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
        last = max(of_data["round"].max(), 1) if len(of_data) else 1
        budget = sweep.budget(data)
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
    models = joined(map(display_name, sweep.models))
    data_sets = joined(map(display_name, sweep.data_sets))
    clients = joined(sweep.client_counts)
    alt = (
        f": one line a K ({clients}), one row a data set ({data_sets}), "
        f"one column a model ({models})."
    )
    return finish(figure, "figure3_curves", title, alt)


def _draw_seeds(axes: Axes, curves: pd.DataFrame, index: int) -> None:
    """Draw the mean of the seeds with a band from lowest to highest; then the longer seeds alone.

    Args:
        curves: accuracy, a row for each round, a column for each seed.
    """
    common = curves.dropna()
    line = line_style(index)
    if not len(common):
        return
    every = max(1, len(common) // 8)
    start = min(index * every // 6 if every > 5 else 0, len(common) - 1)
    means = common.mean(axis=1)
    axes.plot(means, **line | {"marker": ""})
    # Markers above all lines, so that curves that coincide stay visible.
    axes.plot(means, markevery=(start, every), zorder=3, **line | {"linestyle": ""})
    if curves.shape[1] > 1:
        band = {"color": line["color"], "alpha": 0.18, "linewidth": 0}
        axes.fill_between(common.index, common.min(axis=1), common.max(axis=1), **band)
        axes.plot(
            curves.loc[common.index[-1] :], **line | {"marker": "", "linewidth": 0.8}
        )
