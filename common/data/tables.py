"""Texts and labels as they were found, every row with its place; what a cell may hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import nearest


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    text: tuple[str, ...]
    """Joined with one space to make the text."""
    label: str
    """Holds the label."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.text, self.label)


@dataclass(frozen=True)
class Table:
    """Texts and labels as they were found, before anything about them is judged."""

    name: str
    """What messages call it: a path, or a split of a data set."""
    texts: list[str | None]
    """None where the text is missing."""
    labels: list[str | None]
    """None where the label is missing; as long as `texts`."""
    place: Callable[[int], str]
    """Where row i is found, for a person: `a.csv, line 7`."""
    findings: tuple[str, ...] = ()
    """What a person should be told about how it was read."""

    def keep(self, rows: Sequence[int]) -> Table:
        """The table of these rows alone; each still knows its place."""
        return Table(
            self.name,
            [self.texts[row] for row in rows],
            [self.labels[row] for row in rows],
            lambda index: self.place(rows[index]),
            self.findings,
        )


def column_table(name: str, texts: list[list[Any]], labels: list[Any], columns: Columns) -> Table:
    """Make a table of whole columns, `texts` holding one list for each of `columns.text`.

    Raises:
        ValueError: there is no row, or a text or label has a type it cannot have.
    """

    def place(index: int) -> str:
        return f"{name}, row {index + 1}"

    joined = [
        join_texts(
            [as_text(value, column, place(row)) for value, column in zip(cells, columns.text, strict=True)]
        )
        for row, cells in enumerate(zip(*texts, strict=True))
    ]
    if not joined:
        raise ValueError(f"{name} holds no example.")
    return Table(name, joined, [as_label(v, columns.label, place(i)) for i, v in enumerate(labels)], place)


def join_texts(parts: Sequence[str | None]) -> str | None:
    """The parts that say something, joined with one space; None if none does."""
    return " ".join(part for part in parts if part and not part.isspace()) or None


def as_text(value: Any, column: str, place: str) -> str | None:
    """The value of a text column. Raises ValueError if it is neither a text nor missing."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(
        f"{place}: column '{column}' holds {type(value).__name__} where a text belongs. "
        "Put the text in quotes, or name another column in data.text_columns."
    )


def as_label(value: Any, column: str, place: str) -> str | None:
    """The value of a label column as a name; None if it is missing.

    Raises:
        ValueError: it is neither a text, a truth value nor a whole number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():  # pandas makes whole numbers with gaps floats
        value = int(value)
    if isinstance(value, str | int):
        return str(value).strip() or None
    raise ValueError(
        f"{place}: column '{column}' holds {type(value).__name__}; a label is a name or a whole "
        "number. Name another column in data.label_column."
    )


def require_columns(columns: Columns, present: Sequence[str], where: str) -> None:
    """Raise ValueError, naming the columns there are, unless all of `columns` are among them."""
    wanted = [("data.text_columns", name) for name in columns.text] + [("data.label_column", columns.label)]
    for key, name in wanted:
        if name not in present:
            raise ValueError(
                f"{where} has no column '{name}'; it has: {', '.join(present)}.{nearest(name, present)} "
                f"Set {key} to the column that holds it."
            )
