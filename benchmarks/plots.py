"""Curves of a benchmark: a panel for each quantity, a line for each contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """The curve of one contender."""

    name: str
    points: Sequence[tuple[float, float]]
    """(K, value); values of 0 were not measured and are left out."""


def draw(path: Path, panels: Mapping[str, Sequence[Curve]], x_label: str) -> None:
    """Write the picture, in the format of the file name's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 3.8), squeeze=False
    )
    for axis, (quantity, curves) in zip(axes[0], panels.items(), strict=True):
        for curve in curves:
            points = [point for point in curve.points if point[1] > 0]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    linewidth=1.6,
                    label=curve.name,
                )
        ticks = sorted({x for curve in curves for x, _ in curve.points})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(x_label)
        axis.set_ylabel(quantity)
        axis.grid(visible=True, which="major", alpha=0.3)
    _finish(figure, axes[0][0], path)


def draw_bars(path: Path, panels: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a panel for each quantity, a bar for each contender. Values of 0 were not measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 3.6), squeeze=False
    )
    colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    for axis, (quantity, bars) in zip(axes[0], panels.items(), strict=True):
        for number, (name, value) in enumerate(bars.items()):
            if value > 0:
                axis.bar(
                    number, value, color=colours[number % len(colours)], label=name
                )
        axis.set_title(quantity, fontsize=9)
        axis.set_xticks([])
    _finish(figure, axes[0][0], path)


def _finish(figure: Figure, axis: Axes, path: Path) -> None:
    """Put the names of one panel below all panels, make room for them, and write the picture."""
    from matplotlib import pyplot as plt

    figure.tight_layout()
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        fontsize=7,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def draw_rounds(
    path: Path, curves: Mapping[str, Sequence[Sequence[float]]], quantity: str
) -> None:
    """Draw a line for each row: the mean over the repeats, in a band from least to most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    for name, values in curves.items():
        rounds = range(len(values))
        means = [sum(found) / len(found) for found in values]
        (line,) = axis.plot(rounds, means, linewidth=1.6, label=name)
        lowest, highest = (
            [min(found) for found in values],
            [max(found) for found in values],
        )
        axis.fill_between(
            rounds, lowest, highest, color=line.get_color(), alpha=0.12, linewidth=0
        )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("communication round")
    axis.set_ylabel(quantity)
    axis.grid(visible=True, alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
