"""The figures of a run: curves, updates and predictions."""

from __future__ import annotations

from math import log, sqrt

import pandas as pd
from matplotlib.axes import Axes

from wardround.server.diagnostics.collapse import label_name
from wardround.server.report.figures import (
    GREY,
    Drawing,
    bar_style,
    draw_chance,
    draw_level,
    draw_nothing_yet,
    finish,
    line_style,
    panel_row,
    round_axis,
    shown_label,
    styled,
)
from wardround.server.report.run import RunData

_MOST_CLASSES = 6


def run_figures(run: RunData) -> list[Drawing]:
    """Return the curve, and the updates and predictions if the history has them."""
    drawings = [draw_run(run)]
    if run.table["mean_update_norm"].notna().any():
        drawings.append(draw_updates(run))
        drawings += [draw_predictions(run)] if run.looks else []
    return drawings


@styled
def draw_run(run: RunData) -> Drawing:
    """Draw accuracy and loss of one run by round, side by side."""
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
    """Draw the diagnostics of a run's updates by round."""
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
        # A faint line for each client, which the caption explains.
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
    """Draw the shares of the most predicted classes (the others as one) and the entropy."""
    titles = ("Share of the test predictions by class", "Entropy of the predictions")
    figure, (left, right) = panel_row(titles, width=5.0)
    shares = pd.DataFrame(
        [look.shares for look in run.looks], index=[look.round for look in run.looks]
    )
    num_classes = shares.shape[1]
    most = shares.sum().sort_values(ascending=False, kind="stable").index
    shown = sorted(most if num_classes <= _MOST_CLASSES + 1 else most[:_MOST_CLASSES])
    areas = shares[shown].set_axis(
        [shown_label(label_name(run.label_names, label)) for label in shown], axis=1
    )
    styles = [bar_style(index) for index in range(len(shown))]
    if len(shown) < num_classes:
        areas[f"{num_classes - len(shown)} others"] = 1 - areas.sum(axis=1)
        styles.append({"facecolor": GREY})
    stack = left.stackplot(areas.index, areas.T, labels=areas.columns)
    for area, style in zip(stack, styles, strict=True):
        area.set(**{"edgecolor": "white", "linewidth": 0.5} | style)
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
    """Draw a named line of values by round, if there are any."""
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
    """Add the axis of rounds, and the panel's own legend under it."""
    round_axis(axes, run.last_round)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
