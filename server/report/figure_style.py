"""How every figure looks: Okabe-Ito colours that a colour-blind reader can tell apart, never colour alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito 2008, without yellow (too faint on white).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
GREY = "#595959"

_RC: Any = {
    "svg.hashsalt": "wardround",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "hatch.linewidth": 0.7,
    "hatch.color": "white",
}


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


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows × columns panels, each `width` × `height` inches, with room for a legend below."""
    with rc_context(_RC):
        figure = Figure(figsize=(width * columns, height * rows + 0.45), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(line) for line in np.asarray(grid)]


def panel_row(titles: Sequence[str], width: float = 4.2, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """One panel for each title, at most three side by side; a single panel is drawn wider."""
    columns = min(max(len(titles), 1), 3)
    rows = -(-max(len(titles), 1) // columns)
    figure, grid = new_figure(rows, columns, 6.2 if columns == 1 else width, height)
    panels = [axes for line in grid for axes in line]
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title)
    return figure, panels[: len(titles)]


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the index-th series."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.8,
        "markersize": 6,
        "markeredgecolor": "white",
        "markeredgewidth": 0.7,
    }


def bar_style(index: int) -> dict[str, Any]:
    """Colour and hatch of the index-th series."""
    return {
        "facecolor": COLORS[index % len(COLORS)],
        "hatch": HATCHES[index % len(HATCHES)],
        "edgecolor": "white",
    }


def draw_chance(axes: Axes, chance: float | None, at: float = 0.01) -> None:
    """Dashed line at chance; `at` as for `draw_level`."""
    if chance is not None:
        draw_level(axes, chance, f"chance {chance:.3g}", at)


def draw_level(axes: Axes, level: float, name: str, at: float = 0.01) -> None:
    """Dashed line, named just below it, where no curve that sits on it can hide the name.

    Args:
        at: where the name stands, as a share of the panel's width.
    """
    axes.axhline(level, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
    side = "left" if at < 0.5 else "right"
    axes.annotate(
        name,
        (at, level),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -3),
        textcoords="offset points",
        ha=side,
        va="top",
        fontsize=8.5,
        color=GREY,
    )


def draw_nothing_yet(axes: Axes, text: str = "no result yet") -> None:
    """Say in the panel that it is empty, and why."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=10)


def add_legend(
    figure: Figure, handles: Sequence[Any], title: str | None = None, columns: int | None = None
) -> None:
    """Legend under all panels, so that it never hides data; `columns` suits long names."""
    if handles:
        columns = columns or max(1, min(len(handles), int(figure.get_figwidth() / 1.35)))
        with rc_context(_RC):
            figure.legend(
                handles=list(handles),
                title=title,
                loc="outside lower center",
                ncols=columns,
                frameon=False,
                handlelength=3.2,
            )


def render(figure: Figure, name: str, title: str, alt: str) -> Drawing:
    """PNG at 160 dots an inch and SVG, without dates or program versions."""
    png, svg = io.BytesIO(), io.BytesIO()
    with rc_context(_RC):
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(name, title, alt, png.getvalue(), svg.getvalue(), round(figure.get_figwidth() * 96))
