"""Files whose texts are labelled: every column is kept, and the answers are appended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TextIO

from wardround.common.data.file_readers import (
    check_header,
    csv_rows,
    jsonl_rows,
    refuse_other_kinds,
    require_file,
)
from wardround.common.data.tables import Columns, find_columns
from wardround.common.data.values import readable
from wardround.common.explain import nearest
from wardround.common.file_form import FileForm
from wardround.common.tasks.targets import NO_TARGET
from wardround.server.spreadsheet import write_rows

Answer = Sequence[str | float]
"""The values of the added columns for one text: labels, and probabilities."""
# Longer numbers could be written in another form.
_NEGATIVE = re.compile(r"-(0|[1-9]\d{0,14})(\.\d{1,6})?")
_DIGITS = 4


class Texts(Protocol):
    """Texts to label, with everything that their file holds about them."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of the file."""

    @property
    def texts(self) -> list[str]:
        """The texts, in the order of the file."""

    def write(
        self, out: TextIO, added: Sequence[str], answers: Iterable[Answer]
    ) -> None:
        """Write every row with its answer at the end.

        Args:
            added: names of the added columns.
            answers: one for each text.
        """


def kept_names(columns: Sequence[str], added: Sequence[str]) -> list[str]:
    """Return the names of a file's columns beside those of the answer.

    A column with a name of the answer gets `file_` in front, as often as needed.
    """
    taken = {*columns, *added}
    names = []
    for column in columns:
        name = column
        if column in added:
            while name in taken:
                name = f"file_{name}"
            taken.add(name)
        names.append(name)
    return names


@dataclass(frozen=True)
class CsvTexts:
    """Rows of a CSV."""

    columns: list[str]
    rows: list[list[str]]
    position: int
    """Index of the text's column."""

    @property
    def texts(self) -> list[str]:
        """As in `Texts`."""
        return [row[self.position] for row in self.rows]

    def write(
        self, out: TextIO, added: Sequence[str], answers: Iterable[Answer]
    ) -> None:
        """As in `Texts`. A text that a spreadsheet would run as a formula gets a `'` in front."""
        header = [*kept_names(self.columns, added), *added]
        rows = (
            [*map(_cell, row), *map(_shown, answer)]
            for row, answer in zip(self.rows, answers, strict=True)
        )
        write_rows(out, [header])
        write_rows(out, rows)


@dataclass(frozen=True)
class JsonlTexts:
    """JSON objects, one a line."""

    rows: list[dict[str, Any]]
    column: str
    """Key of the text."""

    @property
    def columns(self) -> list[str]:
        """As in `Texts`: the keys of all objects."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    @property
    def texts(self) -> list[str]:
        """As in `Texts`."""
        return [row[self.column] for row in self.rows]

    def write(
        self, out: TextIO, added: Sequence[str], answers: Iterable[Answer]
    ) -> None:
        """As in `Texts`: each object keeps its own keys."""
        names = dict(zip(self.columns, kept_names(self.columns, added), strict=True))
        for row, answer in zip(self.rows, answers, strict=True):
            values = (_rounded(value) for value in answer)
            own = {names[key]: value for key, value in row.items()}
            whole = own | dict(zip(added, values, strict=True))
            # Half a character cannot be written; elsewhere in a row it does not matter.
            out.write(readable(json.dumps(whole, ensure_ascii=False)) + "\n")


def texts_to_label(
    typed: Sequence[str], file: Path | None, column: str, form: FileForm
) -> Texts:
    """Return the texts of a command: those typed, then those of the file.

    Args:
        file: CSV with a header, or JSONL; None for no file.
        column: name of the text's column in the file.
        form: delimiter and encoding of the file.

    Raises:
        ValueError: the file is missing, damaged, not in its encoding or lacks the column; or
            there are no texts.
    """
    found: Texts
    typed = [readable(text) for text in typed]
    if file is None:
        found = CsvTexts(["text"], [[text] for text in typed], 0)
    else:
        require_file(file, "--file")
        refuse_other_kinds(file, "--file", (".csv", ".jsonl"))
        form.require_use([file])
        is_jsonl = file.suffix.lower() == ".jsonl"
        read = _read_jsonl if is_jsonl else _read_csv
        found = read(file, column, typed, form)
    if not found.texts:
        raise ValueError('nothing to label; give --text "..." or --file texts.csv.')
    return found


def _read_csv(
    file: Path, column: str, typed: Sequence[str], form: FileForm
) -> CsvTexts:
    columns = Columns((column,), NO_TARGET, text_key="--column")
    rows = csv_rows(file, form, columns.names)
    _, header = next(rows, (0, list[str]()))
    check_header(file, header, columns, form)
    position = header.index(find_columns(columns, header, str(file))[column])
    first = [["" for _ in header] for _ in typed]
    for row, text in zip(first, typed, strict=True):
        row[position] = text
    return CsvTexts(header, [*first, *(row for _, row in rows)], position)


def _read_jsonl(
    file: Path, column: str, typed: Sequence[str], form: FileForm
) -> JsonlTexts:
    rows = [{column: text} for text in typed]
    for line, row in jsonl_rows(file, form):
        _require(file, column, list(row), f", line {line}")
        if not isinstance(row[column], str):
            raise ValueError(
                f"'{file}', line {line}: {column} is no text but {row[column]!r}. Write a text in "
                "double quotes, or name the text's column with --column."
            )
        rows.append(row)
    return JsonlTexts(rows, column)


def _require(file: Path, column: str, present: Sequence[str], place: str = "") -> None:
    if column not in present:
        raise ValueError(
            f"'{file}'{place} has no column '{column}'; it has: {', '.join(present)}."
            f"{nearest(column, present)} Name the text's column with --column."
        )


def _cell(text: str) -> str | Decimal:
    """Return a cell of the file. A negative number is not a formula, and stays as it is."""
    return Decimal(text) if _NEGATIVE.fullmatch(text) else text


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.{_DIGITS}f}"


def _rounded(value: str | float) -> str | float:
    return value if isinstance(value, str) else round(value, _DIGITS)
