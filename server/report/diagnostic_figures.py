"""What the updates and the predictions of a run tell, round by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, sqrt
from typing import Any

from matplotlib.axes import Axes

from server.diagnostics.collapse import label_name
from server.diagnostics.updates import entropy
from server.report.curves import legend_below, round_axis
from server.report.figure_style import (
    COLORS,
    GREY,
    HATCHES,
    Drawing,
    draw_level,
    line_style,
    panel_row,
    render,
)
from server.report.results import ClientRound, Round, Run, Updates

_MOST_CLASSES = 6
_FAINT: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "alpha": 0.4}


def draw_diagnostics(run: Run) -> list[Drawing]:
    """Figures of the updates and of the predictions, as far as the history tells of them."""
    rounds = [entry for entry in run.rounds if entry.updates is not None]
    drawings = [_draw_updates(run, rounds)] if rounds else []
    return [*drawings, _draw_predictions(run)] if rounds and run.looks else drawings


def _draw_updates(run: Run, rounds: Sequence[Round]) -> Drawing:
    titles = (
        "Norm of the updates",
        "Agreement: norm of mean / mean of norms",
        "Cosine between updates",
        "Mean update: head against body",
        "Optimiser steps so far",
    )
    figure, (norms, ratio, cosines, parts, steps) = panel_row(titles, height=3.3)
    _clients(norms, rounds, lambda client: client.update_norm)
    _line(norms, rounds, lambda updates: updates.mean_norm, "mean update", 0)
    _line(ratio, rounds, lambda updates: updates.norm_ratio, "ratio", 0)
    num_clients = len(rounds[-1].clients)
    if num_clients > 1:
        draw_level(ratio, 1 / sqrt(num_clients), f"independent noise, 1/√{num_clients}", at=0.99)
    _clients(cosines, rounds, lambda client: client.cosine_to_mean)
    for index, (name, key) in enumerate(
        (("to the mean", "cosine_to_mean"), ("to the others", "cosine_to_others"))
    ):
        _client_mean(cosines, rounds, name, key, index)
    _line(parts, rounds, lambda updates: updates.head_norm, "new head", 1)
    _line(parts, rounds, lambda updates: updates.body_norm, "body", 0)
    _clients(steps, rounds, lambda client: client.total_steps)
    _client_mean(steps, rounds, "mean over clients", "total_steps", 0)
    for axes in (norms, ratio, parts, steps):
        axes.set_ylim(bottom=0)
    ratio.set_ylim(0, 1.05)
    cosines.set_ylim(-1.05, 1.05)
    for axes in (norms, ratio, cosines, parts, steps):
        round_axis(axes, run.last_round)
        legend_below(axes)
    title = "What the clients' updates tell"
    return render(figure, "updates", title, f"{title}: {', '.join(titles)}, by round.")


def _line(
    axes: Axes, rounds: Sequence[Round], read: Callable[[Updates], float], name: str, index: int
) -> None:
    values = [(entry.number, read(entry.updates)) for entry in rounds if entry.updates]
    _plot(axes, values, name, index)


def _client_mean(axes: Axes, rounds: Sequence[Round], name: str, key: str, index: int) -> None:
    values = []
    for entry in rounds:
        known = [value for client in entry.clients if (value := getattr(client, key)) is not None]
        if known:
            values.append((entry.number, sum(known) / len(known)))
    if values:
        _plot(axes, values, name, index)


def _plot(axes: Axes, values: Sequence[tuple[int, float]], name: str, index: int) -> None:
    style = line_style(index)
    axes.plot(*zip(*values, strict=True), label=name, markevery=max(1, len(values) // 12), zorder=3, **style)


def _clients(axes: Axes, rounds: Sequence[Round], read: Callable[[ClientRound], float | None]) -> None:
    """A faint line a client, which the caption explains."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in rounds:
        for client in entry.clients:
            value = read(client)
            if value is not None:
                curves.setdefault(client.client, []).append((entry.number, value))
    for curve in curves.values():
        axes.plot(*zip(*curve, strict=True), marker="." if len(curve) < 3 else "", **_FAINT)


def _draw_predictions(run: Run) -> Drawing:
    figure, (shares, spread) = panel_row(
        ["Share of the test predictions by class", "Entropy of the predictions"], 5.0
    )
    _stack(shares, run)
    values = [(look.round, entropy(look.shares)) for look in run.looks]
    _plot(spread, values, "entropy (nats)", 0)
    num_classes = len(run.looks[0].shares)
    draw_level(
        spread, log(num_classes), f"all classes alike, ln {num_classes} = {log(num_classes):.3g}", at=0.99
    )
    spread.set_ylim(0, 1.12 * log(num_classes))
    for axes in (shares, spread):
        round_axis(axes, run.last_round)
        legend_below(axes, columns=3)
    title = "What the model predicts"
    names = ", ".join(run.label_names)
    return render(
        figure, "predictions", title, f"{title}: share of the predictions by class ({names}), and entropy."
    )


def _stack(axes: Axes, run: Run) -> None:
    """Areas of the most predicted classes, in the order of their numbers; the others are one."""
    looks, num_classes = run.looks, len(run.looks[0].shares)
    sums = [sum(look.shares[label] for look in looks) for label in range(num_classes)]
    most = sorted(range(num_classes), key=lambda label: -sums[label])
    shown = sorted(most if num_classes <= _MOST_CLASSES + 1 else most[:_MOST_CLASSES])
    names = [label_name(run.label_names, label) for label in shown]
    areas = [[look.shares[label] for look in looks] for label in shown]
    colors, hatches = list(COLORS[: len(shown)]), list(HATCHES[: len(shown)])
    if len(shown) < num_classes:
        names.append(f"{num_classes - len(shown)} others")
        areas.append([1 - sum(look.shares[label] for label in shown) for look in looks])
        colors.append(GREY)
        hatches.append("")
    rounds = [look.round for look in looks]
    for area, hatch in zip(axes.stackplot(rounds, areas, labels=names, colors=colors), hatches, strict=True):
        area.set(hatch=hatch, edgecolor="white", linewidth=0.5)
    axes.set_ylim(0, 1)
