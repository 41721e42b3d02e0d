"""Texts and targets as they were found in a source, in tables whose rows know their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wardround.common.errors import MissingColumn
from wardround.common.explain import nearest
from wardround.common.tasks.targets import Target, TargetColumns, without_fraction
from wardround.common.words import shown

_YES = ("true", "1", "yes")
_NO = ("false", "0", "no", "")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    text: tuple[str, ...]
    """Columns that are joined with one space to make the text."""
    target: TargetColumns
    """Columns that hold what is to be learned."""
    opt_out: str | None = None
    """Column that is true if a text takes part in no round; None: there is none."""

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


def table_of(
    name: str,
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    unit: str = "line",
) -> Table:
    """Make a table of rows, each with its number and its values by column.

    Args:
        name: as in `Table`.
        unit: word before the number in places: `a.csv, line 7`.

    Raises:
        ValueError: there is no row, or a value has a type that its column cannot have.
    """
    numbers: list[int] = []
    texts: list[str | None] = []
    targets: list[Target] = []
    target = columns.target
    opted_out: list[int] = []
    for number, row in rows:
        place = f"{name}, {unit} {number}"
        parts = [as_text(row.get(column), column, place) for column in columns.text]
        texts.append(join_texts(parts))
        values = {column: row.get(column) for column in target.names}
        targets.append(target.parse(values, place))
        if columns.opt_out is not None:
            value = row.get(columns.opt_out)
            if as_opt_out(value, columns.opt_out, place):
                opted_out.append(len(numbers))
        numbers.append(number)
    if not numbers:
        raise ValueError(
            f"{name} is empty: it holds no example. Check that it was written whole."
        )

    def place_of(index: int) -> str:
        return f"{name}, {unit} {numbers[index]}"

    return Table(name, texts, targets, place_of, tuple(opted_out))


def join_texts(parts: Sequence[str | None]) -> str | None:
    """Join the parts that are not blank with one space; return None if all are."""
    return " ".join(part for part in parts if part and not part.isspace()) or None


def as_text(value: Any, column: str, place: str) -> str | None:
    """Return the value of a text column. Raises ValueError if it is neither text nor missing."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(
        f"{place}: column '{column}' holds {type(value).__name__} instead of a text. Put "
        "the text in quotes, or name another column in data.text_columns."
    )


def as_opt_out(value: Any, column: str, place: str) -> bool:
    """Return whether the value of an opt-out column means yes; a missing one means no.

    Raises:
        ValueError: it is neither a yes nor a no. Nothing is guessed.
    """
    value = without_fraction(value)
    word = "" if value is None else str(value).strip().lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise ValueError(
        f"{place}: column '{column}' holds neither a yes ({', '.join(_YES)}) nor a no "
        "(false, 0, no or nothing). Correct it, or name another column in "
        "data.opt_out_column."
    )


def require_columns(columns: Columns, present: Sequence[str], where: str) -> None:
    """Raise MissingColumn, with the columns there are, unless all of `columns` are present."""
    wanted: list[tuple[str, str | None]] = [
        *(("data.text_columns", name) for name in columns.text),
        *((columns.target.key, name) for name in columns.target.names),
        ("data.opt_out_column", columns.opt_out),
    ]
    for key, name in wanted:
        if name is not None and name not in present:
            raise MissingColumn(
                f"{where} has no column '{name}'; it has: "
                f"{', '.join(map(shown, present))}.{nearest(name, present)} Set {key} to "
                "the column that holds it."
            )
