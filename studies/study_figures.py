"""The figures of a study: one switch on and off, the clock, the remedies."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

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
from server.report.result_table import joined
from studies.study import Remedy, Study, Switch
from studies.study_curves import Curve, Pair, by_clients, mean_curve

_UNTREATED: dict[str, Any] = {"color": GREY, "linewidth": 3.5, "alpha": 0.55, "linestyle": "-"}


def draw_switch(switch: Switch, pairs: Sequence[Pair]) -> Drawing:
    """Rounds at chance and mean accuracy against K, with the switch off and on; dots are single runs."""
    figure, (left, right) = panel_row(
        ["First round above chance", "Mean accuracy over the rounds"], width=5.0
    )
    groups = by_clients(pairs)
    for axes in (left, right):
        _client_axis(axes, list(groups))
        if not groups:
            draw_nothing_yet(axes)
    if groups:
        last = max(pair.num_rounds for pair in pairs)
        for index in (0, 1):
            for axes, read in ((left, _left_chance), (right, _mean_accuracy)):
                values = {k: [read(pair, index) for pair in group] for k, group in groups.items()}
                _draw_level(axes, values, index)
        left.axhline(last + 1, color=GREY, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1)
        left.annotate(
            f"not within {last} rounds",
            (0.01, last + 1),
            xycoords=left.get_yaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8.5,
            color=GREY,
        )
        left.set_ylim(0, (last + 1) * 1.12)
        left.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        right.set_ylim(0, 1.05)
        draw_chance(right, pairs[0].base.chance)
    add_legend(figure, [Line2D([], [], label=name, **line_style(i)) for i, name in enumerate(switch.names)])
    title = f"{switch.key}: {switch.base} against {switch.other}"
    alt = f"{title}, by number of clients ({joined(groups)}): the numbers are in the verdict."
    return render(figure, f"study_{switch.id}", title, alt)


def _left_chance(pair: Pair, index: int) -> float:
    """A run that never left counts as leaving in the round after its last."""
    curve = (pair.base, pair.other)[index]
    return curve.left_chance() or curve.num_rounds + 1


def _mean_accuracy(pair: Pair, index: int) -> float:
    return (pair.base, pair.other)[index].mean_accuracy(pair.num_rounds)


def _draw_level(axes: Axes, values: dict[int, list[float]], index: int) -> None:
    aside = 2 ** (0.12 * (index - 0.5))
    style = line_style(index)
    for k, several in values.items():
        axes.plot([k * aside] * len(several), several, "o", color=style["color"], alpha=0.3, markersize=4)
    axes.plot([k * aside for k in values], [fmean(several) for several in values.values()], **style)


def _client_axis(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xlabel("number of clients K")
    if counts:
        axes.set_xscale("log", base=2)
        axes.set_xlim(counts[0] / 1.35, counts[-1] * 1.35)
        axes.set_xticks(counts, [str(k) for k in counts])
        axes.minorticks_off()


def draw_clock(study: Study) -> Drawing:
    """Accuracy by round and by steps per client, one line a K, for the best and the worst arm."""
    arms = _best_and_worst(study)
    counts = sorted({k for curves in arms.values() for k in curves})
    figure, grid = new_figure(max(len(arms), 1), 2, 5.0, 3.1)
    for line, (arm, curves) in zip(grid, arms.items(), strict=False):
        for axes, against in zip(line, ("communication round", "optimiser steps per client"), strict=True):
            is_by_steps = against.startswith("optimiser")
            for k, curve in curves.items():
                x = curve.steps if is_by_steps else range(len(curve.accuracies))
                skip = int(is_by_steps)  # step 0 has no place on a logarithmic axis
                style = line_style(counts.index(k)) | {"markersize": 4.5, "linewidth": 1.4}
                axes.plot(list(x)[skip:], curve.accuracies[skip:], **style)
            if is_by_steps:
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            else:
                axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            draw_chance(axes, next(iter(curves.values())).chance, at=0.99)
            axes.set_ylim(0, 1.05)
            axes.set_xlabel(against)
            axes.set_title(arm)
        line[0].set_ylabel("test accuracy")
    if not arms:
        for axes in grid[0]:
            draw_nothing_yet(axes)
    handles = [Line2D([], [], label=str(k), **line_style(i)) for i, k in enumerate(counts)]
    add_legend(figure, handles, "number of clients K")
    title = "Test accuracy against communication round, and against optimiser steps per client"
    alt = f"{title}: one line a K ({joined(counts)}), rows are the arms {joined(arms)}."
    return render(figure, "study_c", title, alt)


def _best_and_worst(study: Study) -> dict[str, dict[int, Curve]]:
    """The two arms that are furthest apart in mean accuracy over rounds and K."""
    arms = study.arms()
    means = {
        arm: fmean(curve.mean_accuracy(curve.num_rounds) for curve in curves.values())
        for arm, curves in arms.items()
    }
    chosen = sorted(means, key=lambda arm: means[arm])
    return {arm: arms[arm] for arm in dict.fromkeys([*chosen[-1:], *chosen[:1]])}


def draw_remedies(remedies: Sequence[Remedy]) -> Drawing:
    """Accuracy by round with each remedy and without any, one panel a K."""
    counts = sorted({pair.num_clients for remedy in remedies for pair in remedy.pairs})
    figure, panels = panel_row([f"K = {k}" for k in counts] or [""], width=5.0)
    for axes, k in zip(panels, counts, strict=False):
        bases = [pair.base for remedy in remedies for pair in remedy.pairs if pair.num_clients == k]
        base = mean_curve(bases)
        axes.plot(base.accuracies, zorder=1, **_UNTREATED)
        for index, remedy in enumerate(remedies):
            treated = [pair.other for pair in remedy.pairs if pair.num_clients == k]
            if treated:
                accuracies = mean_curve(treated).accuracies
                axes.plot(accuracies, markevery=max(1, len(accuracies) // 8), **line_style(index))
        draw_chance(axes, base.chance, at=0.99)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("communication round")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panels[0].set_ylabel("test accuracy")
    if not counts:
        draw_nothing_yet(panels[0])
    handles = [Line2D([], [], label=remedy.name, **line_style(i)) for i, remedy in enumerate(remedies)]
    untreated = [Line2D([], [], label="no remedy", **_UNTREATED)] if remedies else []
    add_legend(figure, [*untreated, *handles], columns=2)
    title = "Test accuracy against communication round, with each remedy and with none"
    alt = f"{title}: {joined(remedy.name for remedy in remedies)}; one panel a K ({joined(counts)})."
    return render(figure, "study_d", title, alt)
