"""The paper's Figures 1 and 2: accuracy and rounds to the target, against K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from server.report.figure_style import (
    COLORS,
    GREY,
    Drawing,
    add_legend,
    bar_style,
    draw_chance,
    draw_nothing_yet,
    line_style,
    panel_row,
    render,
)
from server.report.result_table import Row, display_name, joined
from server.report.results import Sweep


def draw_accuracy(sweep: Sweep) -> Drawing:
    """Figure 1: test accuracy at the budget against K, one panel a data set, one line a model."""
    titles = []
    for data in sweep.data_sets:
        budget = sweep.budget(data)
        titles.append(display_name(data) + (f" (round {budget})" if budget is not None else ""))
    figure, panels = panel_row(titles)
    for axes, data in zip(panels, sweep.data_sets, strict=True):
        _accuracy_panel(axes, sweep, data)
    if panels:
        panels[0].set_ylabel("test accuracy at the budget")
    add_legend(figure, _model_lines(sweep.models))
    title = "Figure 1. Accuracy at the budget against the number of clients"
    alt = (
        f"{title}: {joined(map(display_name, sweep.models))}, one panel a data set "
        f"({joined(map(display_name, sweep.data_sets))}); the numbers are in the result table."
    )
    return render(figure, "figure1_accuracy", title, alt)


def _model_lines(models: Sequence[str]) -> list[Line2D]:
    return [Line2D([], [], label=display_name(m), **line_style(i)) for i, m in enumerate(models)]


def _accuracy_panel(axes: Axes, sweep: Sweep, data: str) -> None:
    counts = sweep.client_counts
    drawn = 0
    for index, model in enumerate(sweep.models):
        rows = [Row(model, data, k, sweep.group(model, data, k)) for k in counts]
        points = [(row.num_clients, row.accuracy) for row in rows if row.accuracy]
        # A few percent aside, so that models with equal results stay visible.
        aside = 2 ** (0.07 * (index - (len(sweep.models) - 1) / 2))
        x = [num_clients * aside for num_clients, _ in points]
        y = [value.mean for _, value in points]
        spread = [[v.mean - v.low for _, v in points], [v.high - v.mean for _, v in points]]
        if any(value.count > 1 for _, value in points):
            axes.errorbar(
                x, y, yerr=spread, fmt="none", ecolor=COLORS[index % len(COLORS)], capsize=3, linewidth=1.2
            )
        axes.plot(x, y, **line_style(index))
        if len(sweep.models) == 1:
            for at, (_, value) in zip(x, points, strict=True):
                label = f"{value.mean:.3f}"
                axes.annotate(label, (at, value.high), (0, 8), textcoords="offset points", ha="center")
        drawn += len(points)
    if not drawn:
        draw_nothing_yet(axes)
    draw_chance(axes, sweep.chance(data))
    axes.set_ylim(0, 1.05)
    axes.set_xscale("log", base=2)
    axes.set_xlim(counts[0] / 1.35, counts[-1] * 1.35)
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.minorticks_off()
    axes.set_xlabel("number of clients K")


def draw_rounds(sweep: Sweep) -> Drawing:
    """Figure 2: bars of rounds to the target; a cell that did not reach it is named and has no bar."""
    # One model needs no legend: the title names it.
    only = f"{display_name(sweep.models[0])} on " if len(sweep.models) == 1 else ""
    figure, panels = panel_row([only + display_name(data) for data in sweep.data_sets])
    for axes, data in zip(panels, sweep.data_sets, strict=True):
        _rounds_panel(axes, sweep, data)
    if panels:
        panels[0].set_ylabel("communication rounds")
    if len(sweep.models) > 1:
        add_legend(figure, [Patch(label=display_name(m), **bar_style(i)) for i, m in enumerate(sweep.models)])
    title = f"Figure 2. Rounds to reach {sweep.target_fraction:.0%} of the K = 1 accuracy"
    alt = (
        f"{title}: bars by number of clients, one panel a data set "
        f"({joined(map(display_name, sweep.data_sets))}); the numbers are in the result table."
    )
    return render(figure, "figure2_rounds_to_target", title, alt)


def _rounds_panel(axes: Axes, sweep: Sweep, data: str) -> None:
    rows = [
        Row(model, data, num_clients, sweep.group(model, data, num_clients))
        for model in sweep.models
        for num_clients in sweep.client_counts
    ]
    highest = max((row.rounds.high for row in rows if row.rounds), default=0)
    limit = sweep.second_threshold(data)
    top = max(highest, limit or 0, 1)
    axes.set_ylim(0, top * 1.22)
    axes.set_xlim(-0.6, len(sweep.client_counts) - 0.4)
    axes.set_xticks(range(len(sweep.client_counts)), [str(k) for k in sweep.client_counts])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("number of clients K")
    if limit is not None:
        axes.axhline(limit, color=GREY, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1)
        axes.annotate(
            f"second threshold: {limit} rounds",
            (0.01, limit),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8.5,
            color=GREY,
        )
    slot = min(0.84 / len(sweep.models), 0.5)
    for row in rows:
        index = sweep.models.index(row.model)
        x = sweep.client_counts.index(row.num_clients) + (index - (len(sweep.models) - 1) / 2) * slot
        if row.cells:
            _draw_bar(axes, row, x, slot, index, crowded=len(rows) > 8)


def _draw_bar(axes: Axes, row: Row, x: float, slot: float, index: int, crowded: bool) -> None:
    words: dict[str, Any] = {
        "fontsize": 7.5 if crowded else 9.5,
        "ha": "center",
        "va": "bottom",
        "textcoords": "offset points",
    }
    if row.rounds is None:
        foot = 0.02 * axes.get_ylim()[1]
        axes.plot(
            [x],
            [foot],
            marker="x",
            color=COLORS[index % len(COLORS)],
            markersize=6,
            markeredgewidth=2,
            zorder=4,
        )
        axes.annotate(row.outcomes, (x, foot), (0, 7), rotation=90 if crowded else 0, color=GREY, **words)
        return
    mean, low, high = row.rounds.mean, row.rounds.low, row.rounds.high
    axes.bar([x], [mean], width=slot * 0.92, linewidth=0.5, **bar_style(index))
    if row.rounds.count > 1:
        axes.errorbar([x], [mean], yerr=[[mean - low], [high - mean]], fmt="none", ecolor="black", capsize=2)
    part = row.rounds.count < len(row.cells)
    label = (f"{mean:.0f}" if crowded else f"{mean:.3g}") + (
        f" ({row.rounds.count} of {len(row.cells)} seeds)" if part else ""
    )
    axes.annotate(label, (x, high), (0, 2), rotation=90 if part and crowded else 0, **words)
