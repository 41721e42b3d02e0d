"""Accuracy against communication round: Figure 3 of a sweep, and the curve of one run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from server.report.figure_style import (
    GREY,
    Drawing,
    add_legend,
    draw_chance,
    draw_nothing_yet,
    line_style,
    new_figure,
    panel_row,
    render,
)
from server.report.result_table import display_name, joined
from server.report.results import Cell, Run, Sweep


def draw_curves(sweep: Sweep) -> Drawing:
    """Figure 3: test accuracy against round, rows = data sets, columns = models, one line a K."""
    rows, columns = max(len(sweep.data_sets), 1), max(len(sweep.models), 1)
    figure, grid = new_figure(rows, columns, 6.2 if columns == 1 else 3.9, 3.6 if rows == 1 else 2.7)
    for line, data in zip(grid, sweep.data_sets, strict=False):
        last = max((cell.run.last_round for cell in sweep.cells if cell.data == data and cell.run), default=0)
        for axes, model in zip(line, sweep.models, strict=True):
            _curve_panel(axes, sweep, model, data, max(last, 1))
        line[0].set_ylabel("test accuracy")
    for axes in grid[-1]:
        axes.set_xlabel("communication round")
    handles = [Line2D([], [], label=str(k), **line_style(i)) for i, k in enumerate(sweep.client_counts)]
    add_legend(figure, handles, "number of clients K")
    title = "Figure 3. Test accuracy against communication round"
    alt = (
        f"{title}: one line a K ({joined(sweep.client_counts)}), one row a data set "
        f"({joined(map(display_name, sweep.data_sets))}), one column a model "
        f"({joined(map(display_name, sweep.models))})."
    )
    return render(figure, "figure3_curves", title, alt)


def _curve_panel(axes: Axes, sweep: Sweep, model: str, data: str, last: int) -> None:
    axes.set_title(f"{display_name(model)} on {display_name(data)}")
    for index, num_clients in enumerate(sweep.client_counts):
        _draw_group(axes, sweep.group(model, data, num_clients), index)
    if not axes.lines:
        draw_nothing_yet(axes)
    draw_chance(axes, sweep.chance(data), at=0.96)  # clear of a budget that is the last round
    axes.set_ylim(0, 1.05)
    axes.set_xlim(-0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(_round_ticks())
    budget = sweep.budget(data)
    if budget is not None and 0 < budget <= last:
        axes.axvline(budget, color=GREY, linewidth=0.9, zorder=1)
        axes.annotate(
            "budget",
            (budget, 0),
            (-3, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color=GREY,
        )


def _draw_group(axes: Axes, cells: Sequence[Cell], index: int) -> None:
    """Mean of the seeds with a band from lowest to highest, as far as all of them go; then each alone."""
    curves = [curve for cell in cells if (curve := _accuracy_by_round(cell.run))]
    if not curves:
        return
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = [sum(curve[r] for curve in curves) / len(curves) for r in common]
    every = max(1, len(common) // 8)
    start = min(index * every // 6 if every > 5 else 0, len(common) - 1)
    style = line_style(index)
    axes.plot(common, means, **style | {"marker": ""})
    # Markers above all lines: where curves lie on one another, each still shows.
    axes.plot(common, means, markevery=(start, every), zorder=3, **style | {"linestyle": ""})
    if len(curves) == 1:
        return
    lows = [min(curve[r] for curve in curves) for r in common]
    highs = [max(curve[r] for curve in curves) for r in common]
    axes.fill_between(common, lows, highs, color=style["color"], alpha=0.18, linewidth=0)
    for curve in curves:
        tail = [r for r in sorted(curve) if r >= common[-1]]
        axes.plot(
            tail, [curve[r] for r in tail], color=style["color"], linestyle=style["linestyle"], linewidth=0.8
        )


def _accuracy_by_round(run: Run | None) -> dict[int, float]:
    return {entry.number: entry.accuracy for entry in run.rounds if entry.accuracy is not None} if run else {}


def draw_run(run: Run) -> Drawing:
    """Accuracy and loss of one run by round, side by side."""
    figure, (left, right) = panel_row(["Test accuracy and macro F1", "Loss"], width=5.0)
    for axes, name, key, index in (
        (left, "test accuracy", "accuracy", 0),
        (left, "macro F1", "macro_f1", 1),
        (right, "test loss", "test_loss", 0),
        (right, "training loss", "train_loss", 1),
    ):
        points = [
            (entry.number, getattr(entry, key)) for entry in run.rounds if getattr(entry, key) is not None
        ]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                markevery=max(1, len(points) // 12),
                **line_style(index),
            )
    for axes in (left, right):
        if axes.lines:
            legend_below(axes)
        else:
            draw_nothing_yet(axes, "no round yet")
        round_axis(axes, run.last_round)
    left.set_ylim(0, 1.05)
    right.set_ylim(bottom=0)
    for collapse in run.collapses:
        left.axvspan(collapse.first - 0.5, collapse.last + 0.5, color=GREY, alpha=0.14, linewidth=0, zorder=0)
    draw_chance(left, run.chance, at=0.99)
    title = "Accuracy and loss by round"
    return render(figure, "curve", title, f"{title}; the last round's numbers are in the text.")


def legend_below(axes: Axes, columns: int = 2) -> None:
    """The panel's own legend, under it."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, frameon=False, handlelength=3.2
    )


def round_axis(axes: Axes, last_round: int) -> None:
    """Rounds from 0 to the last, at whole numbers."""
    last = max(last_round, 1)
    axes.set_xlabel("communication round")
    axes.set_xlim(-0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(_round_ticks())


def _round_ticks() -> MaxNLocator:
    return MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10])
