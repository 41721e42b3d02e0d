"""CSV for spreadsheets: no cell is run as a formula.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@`. Some skip spaces, quotes, tabs or
line breaks before it. A spreadsheet that separates cells by `;` or tab, not by a comma, starts a
cell in the middle of ours. A text gets a `'` at every such place. Numbers of this program stay
numbers. Source: owasp.org/www-community/attacks/CSV_Injection.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import TextIO

# The last four characters are wide forms of the first four.
_FORMULA = r"[\s\"']*[=+\-@\uff1d\uff0b\uff0d\uff20]"
_BREAK = r"[ \"']*[\t\r\n]"
_CELL_START = r"(?:\A|(?<=[;\t]))"
_DANGER = re.compile(rf"\A(?={_BREAK})|{_CELL_START}(?={_FORMULA})")


def safe_text(text: str) -> str:
    """Return a text that a spreadsheet never runs as a formula: `=1` becomes `'=1`."""
    return _DANGER.sub("'", text)


def write_rows(out: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Write rows of CSV with commas; texts are made safe, None is an empty cell.

    Raises:
        OSError: `out` cannot be written.
    """
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow(
            [safe_text(cell) if isinstance(cell, str) else cell for cell in row]
        )
