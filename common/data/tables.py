"""Texts and targets as they were found in a source, in tables whose rows know their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wardround.common.data.values import (
    as_opt_out,
    as_text,
    is_garbled,
    join_texts,
    readable,
)
from wardround.common.errors import MissingColumn
from wardround.common.explain import nearest
from wardround.common.tasks.targets import Target, TargetColumns
from wardround.common.words import code_points, label_name, shown


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    text: tuple[str, ...]
    """Columns that are joined with one space to make the text."""
    target: TargetColumns
    """Columns that hold what is to be learned; `NO_TARGET` reads none."""
    opt_out: str | None = None
    """Column that is true if a text takes part in no round; None: there is none."""
    text_key: str = "data.text_columns"
    """The setting that names the text columns, for messages."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        opt_out = () if self.opt_out is None else (self.opt_out,)
        return (*self.text, *self.target.names, *opt_out)


@dataclass(frozen=True)
class Table:
    """Texts and targets as they were found, not checked yet."""

    name: str
    """Name for messages: a path, or a split of a data set."""
    texts: list[str | None]
    """None if the text is missing or blank."""
    targets: list[Target]
    """None if the target is missing; as long as `texts`."""
    place: Callable[[int], str]
    """Returns the place of row i for a person: `a.csv, line 7`."""
    opted_out: tuple[int, ...] = ()
    """Rows that take part in no round, ascending."""
    findings: tuple[str, ...] = ()
    """Remarks for a person about how it was read."""

    def keep(self, rows: Sequence[int]) -> Table:
        """Return the table of these rows; their places stay the same."""
        out = set(self.opted_out)
        return replace(
            self,
            texts=[self.texts[row] for row in rows],
            targets=[self.targets[row] for row in rows],
            place=lambda index: self.place(rows[index]),
            opted_out=tuple(index for index, row in enumerate(rows) if row in out),
        )


@dataclass(frozen=True)
class Rows:
    """Rows as a reader found them, before the rules of rows are applied."""

    name: str
    """Name for messages: a path, or a split of a data set."""
    header: Sequence[str]
    """Names of all columns as the source spells them; empty if the source has no rows."""
    values: Iterable[tuple[int, Mapping[str, Any]]]
    """For each row its number, and its values by column."""
    place: Callable[[int], str]
    """Returns the place of a row for a person, from the number of the row."""


def numbered(name: str, unit: str) -> Callable[[int], str]:
    """Return a function that names the place of a row: `a.csv, line 7`."""
    return lambda number: f"{name}, {unit} {number}"


def table_of(rows: Rows, columns: Columns) -> Table:
    """Apply the rules of rows, which are the same for every source.

    Each column that is read is there once. A text is text, and a sign that cannot be part of
    a text becomes U+FFFD. A label has one spelling (`label_name`). There is at least one row.

    Raises:
        MissingColumn: a column is missing.
        ValueError: there is no row, a column is there twice, or a value has a type that its
            column cannot have.
    """
    spelled = find_columns(columns, rows.header, rows.name) if rows.header else {}

    def value(row: Mapping[str, Any], column: str) -> Any:
        return row.get(spelled.get(column, column))

    numbers: list[int] = []
    texts: list[str | None] = []
    targets: list[Target] = []
    target = columns.target
    opted_out: list[int] = []
    unreadable: list[int] = []
    garbled: list[int] = []
    spellings: dict[str, set[str]] = {}
    for number, row in rows.values:
        place = rows.place(number)
        parts = [as_text(value(row, name), name, place) for name in columns.text]
        text = join_texts(parts)
        if text is not None and (whole := readable(text)) != text:
            text = whole
            unreadable.append(number)
        if text is not None and is_garbled(text):
            garbled.append(number)
        texts.append(text)
        values = {name: value(row, name) for name in target.names}
        targets.append(target.parse(values, place))
        if target.holds_class:
            _note_spellings(spellings, values.values())
        if columns.opt_out is not None:
            mark = value(row, columns.opt_out)
            if as_opt_out(mark, columns.opt_out, place):
                opted_out.append(len(numbers))
        numbers.append(number)
    if not numbers:
        raise ValueError(
            f"{rows.name} is empty: it holds no example. Check that it was written whole."
        )
    findings = []
    if unreadable:
        findings.append(
            f"{rows.name}: {len(unreadable)} text(s) hold NUL or half a character, which is "
            f"read as U+FFFD; the first in {rows.place(unreadable[0])}"
        )
    if garbled:
        findings.append(
            f"{rows.name}: {len(garbled)} text(s) hold signs as UTF-8 has them if it is read as "
            f"windows-1252 (such as \u00c3\u00bc for \u00fc); the first in "
            f"{rows.place(garbled[0])}. If that is wrong, export the file again"
        )
    findings += _merged_spellings(rows.name, spellings)
    return Table(
        rows.name,
        texts,
        targets,
        lambda index: rows.place(numbers[index]),
        tuple(opted_out),
        tuple(findings),
    )


def _note_spellings(spellings: dict[str, set[str]], values: Iterable[Any]) -> None:
    """Add names of labels to the spellings that are read as the same label."""
    for value in values:
        if isinstance(value, str):
            spellings.setdefault(label_name(value), set()).add(value.strip())


def _merged_spellings(name: str, spellings: Mapping[str, set[str]]) -> list[str]:
    """Return a remark for every label that is written in several ways."""
    return [
        f"{name}: label {shown(label)} is written in {len(ways)} ways, which are read as "
        f"one: {', '.join(map(code_points, sorted(ways)))}"
        for label, ways in spellings.items()
        if len(ways) > 1
    ]


def find_columns(
    columns: Columns, present: Sequence[str], where: str
) -> dict[str, str]:
    """Return the spelling in the source of every column that is read, by its name.

    Raises:
        MissingColumn: a column is missing; the message lists the columns there are.
        ValueError: a column is there more than once.
    """
    require_columns(columns, present, where)
    spelled = {}
    for name in columns.names:
        same = [other for other in present if label_name(other) == label_name(name)]
        if len(same) > 1:
            raise ValueError(
                f"{where}: {len(same)} columns are called '{name}'. Rename all except one."
            )
        spelled[name] = same[0]
    return spelled


def require_columns(columns: Columns, present: Sequence[str], where: str) -> None:
    """Raise MissingColumn, with the columns there are, unless all of `columns` are present."""
    wanted: list[tuple[str, str | None]] = [
        *((columns.text_key, name) for name in columns.text),
        *((columns.target.key, name) for name in columns.target.names),
        ("data.opt_out_column", columns.opt_out),
    ]
    known = {label_name(name) for name in present}
    for key, name in wanted:
        if name is not None and label_name(name) not in known:
            raise MissingColumn(
                f"{where} has no column '{name}'; it has: "
                f"{', '.join(map(shown, present))}.{nearest(name, present)} Set {key} to "
                "the column that holds it."
            )
