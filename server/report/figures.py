"""The parts of figures: panels, axes, legends and styles that colour-blind readers can tell
apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

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

styled = style.context(Path(__file__).parent / "templates/figures.mplstyle")
"""Decorator of every function that draws."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure. The same input gives the same bytes."""

    name: str
    title: str
    alt: str
    png: bytes
    svg: bytes
    width: int
    """Natural width in CSS pixels."""


def shown_label(text: str) -> str:
    """Return a text from data as a legend shows it: Matplotlib hides what begins with `_`."""
    return f" {text}" if text.startswith("_") else text


def panel_row(
    titles: Sequence[str],
    width: float = 4.2,
    height: float = 3.5,
    columns: int = 3,
    label: str = "",
) -> tuple[Figure, list[Axes]]:
    """Make a panel of `width` × `height` inches for each title, `columns` in a row; a single one is
    wider.

    Args:
        label: label of the vertical axis, which the panels of a row share.
    """
    columns = min(max(len(titles), 1), columns)
    rows = -(-max(len(titles), 1) // columns)
    if columns == 1:
        width = 6.2
    size = (width * columns, height * rows + 0.45)  # with room for a legend below
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    for number, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        axes.set(title=title, ylabel="" if number % columns else label)
    return figure, panels[: len(titles)]


def line_style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of the index-th series."""
    styles = {"color": COLORS, "marker": MARKERS, "linestyle": DASHES}
    return {key: values[index % len(values)] for key, values in styles.items()}


def bar_style(index: int) -> dict[str, Any]:
    """Return colour and hatch of the index-th series."""
    return {
        "facecolor": COLORS[index % 7],
        "hatch": HATCHES[index % 7],
        "edgecolor": "white",
    }


def draw_chance(axes: Axes, chance: float | None, at: float = 0.01) -> None:
    """Draw a dashed line at chance; `at` as for `draw_level`."""
    if chance is not None:
        draw_level(axes, chance, f"chance {chance:.3g}", at)


def draw_level(
    axes: Axes, level: float, name: str, at: float = 0.01, above: bool = False
) -> None:
    """Draw a dashed line with its name just below it, so that no curve on the line hides the name.

    Args:
        at: position of the name, as a share of the panel's width.
        above: for a limit: a dotted line with its name above it.
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
    """Write small text at a place in the panel, moved by `offset` points."""
    words: dict[str, Any] = {"fontsize": 8.5, "color": GREY}
    axes.annotate(text, at, offset, textcoords="offset points", **words | more)


def draw_nothing_yet(axes: Axes, text: str = "no result yet") -> None:
    """Write into an empty panel why it is empty."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY
    )


def client_axis(axes: Axes, counts: Sequence[int]) -> None:
    """Show K on a logarithmic axis."""
    axes.set_xlabel("number of clients K")
    if counts:
        axes.set_xscale("log", base=2)
        axes.set_xlim(counts[0] / 1.35, counts[-1] * 1.35)
        axes.set_xticks(counts, [str(k) for k in counts])
        axes.minorticks_off()


def round_axis(axes: Axes, last_round: int) -> None:
    """Show rounds from 0 to the last, at whole numbers."""
    last = max(last_round, 1)
    axes.set(xlabel="communication round", xlim=(-0.02 * last, last * 1.02))
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10])
    )


def line_legend(
    figure: Figure, names: Sequence[object], title: str | None = None
) -> None:
    """Add the legend of lines, each in the style of its position."""
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
    """Add a legend under all panels, so that it never hides data.

    Args:
        columns: None means as many as fit.
    """
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
    """Write the figure as PNG and SVG, without dates or program versions."""
    png = io.BytesIO()
    svg = io.BytesIO()
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
