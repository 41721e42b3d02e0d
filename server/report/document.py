"""A report as a list of blocks, written once and rendered as a self-contained page or as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #ffffff; --soft: #f3f4f6; --line: #c9cdd3; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --back: #17191c; --soft: #23262b; --line: #474c55; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: var(--text); background: var(--back);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid;
  border-color: var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.3rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
p.lead { font-size: 1.1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.95rem; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.75rem; white-space: nowrap; }
tr { border-bottom: 1px solid var(--line); }
td.prose { min-width: 16rem; max-width: 38rem; white-space: normal; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
thead th { background: var(--soft); }
@media (max-width: 40rem) { table { font-size: 0.88rem; } th, td { padding: 0.3rem 0.45rem; } }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { font-size: 0.95rem; margin-top: 0.4rem; max-width: 46rem; }
pre { background: var(--soft); padding: 0.7rem 0.9rem; border-radius: 6px; overflow-x: auto; }
summary { cursor: pointer; font-weight: 600; padding: 0.4rem 0; }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
"""

MIN_FIGURE_SCALE = 0.55
"""Smallest share of its natural width to which a figure shrinks before it scrolls inside its box."""
PROSE_CHARACTERS = 60
"""Cells longer than this are set as running text."""
_LEAD = ' class="lead"'


@dataclass(frozen=True)
class Heading:
    """A section's title, or with level 3 a title inside it."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain words; `lead` sets them larger."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Bullets:
    """One line each."""

    items: Sequence[str]


@dataclass(frozen=True)
class Command:
    """Something to type."""

    text: str


@dataclass(frozen=True)
class Table:
    """Header and rows of texts; `folded` hides it behind its caption on the page."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure: inline on the page, a link to `file` in Markdown."""

    file: str
    alt: str
    caption: str
    svg: bytes
    width: int


Block = Heading | Paragraph | Bullets | Command | Table | Picture


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page that needs no other file and no network."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same for a pull request or an email; figures are links to the files beside it."""
    return "\n\n".join([f"# {_plain(title)}", *(_markdown(block) for block in blocks)]) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_text(text)}</h{level}>"
        case Paragraph(text, lead):
            return f"<p{_LEAD if lead else ''}>{_text(text)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_text(item)}</li>" for item in items) + "\n</ul>"
        case Command(text):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Table():
            return _html_table(block)
        case Picture(_, alt, caption, svg, width):
            source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
            smallest = round(width * MIN_FIGURE_SCALE)
            return (
                f'<figure>\n<div class="wide" tabindex="0"><img alt="{escape(alt)}" src="{source}" '
                f'style="min-width:{smallest}px;max-width:{round(width * 1.25)}px"></div>\n'
                f"<figcaption>{_text(caption)}</figcaption>\n</figure>"
            )


def _html_table(table: Table) -> str:
    kinds = [_kind([row[column] for row in table.rows]) for column in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in zip(table.header, kinds, strict=True)
    )
    lines = [
        "<tr>"
        + "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in table.rows
    ]
    grid = (
        f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )
    if table.folded:
        return f"<details><summary>{_text(table.caption)}</summary>\n{grid}</details>"
    # The caption stands outside the box that scrolls, so that a narrow screen shows all of it.
    return f"<figure>\n<figcaption>{_text(table.caption)}</figcaption>\n{grid}\n</figure>"


def _text(text: str) -> str:
    return escape(text).replace("K = ", "K&nbsp;=&nbsp;")


def _kind(texts: Sequence[str]) -> str:
    """Attribute of a column: numbers stand right, long texts wrap."""
    if any(len(text) > PROSE_CHARACTERS for text in texts):
        return ' class="prose"'
    return ' class="number"' if any(re.match(r"-?\d", text) for text in texts) else ""


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Paragraph(text, _):
            return _plain(text)
        case Bullets(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Command(text):
            return f"```\n{text}\n```"
        case Table(caption, header, rows, _):
            lines = [header, ["---"] * len(header), *rows]
            return f"{_plain(caption)}\n\n" + "\n".join(
                "| " + " | ".join(map(_plain, row)) + " |" for row in lines
            )
        case Picture(file, alt, caption, _, _):
            return f"![{_plain(alt)}]({file}.png)\n\n{_plain(caption)}"


def _plain(text: str) -> str:
    """On one line, with the signs escaped that Markdown would take as its own."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", " ".join(text.split()))
