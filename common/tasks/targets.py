"""Targets as a source holds them: the columns to read, and tables of targets with their places."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

Target = Any
"""What is to be learned of one text, as it was found: a JSON value. None if it is missing."""


_STEPS: Sequence[tuple[type | tuple[type, ...], str, str]] = (
    (bytes, "binary data", "Decode it and write it as text"),
    ((list, tuple), "a list", "Join its items and write them as one text"),
    (dict, "nested fields", "Write the field that you need as a column of its own"),
    (
        (bool, int, float, Decimal),
        "a number",
        "Write it as text (in JSON: in quotes)",
    ),
)
"""Types that are no text: the type's name for people, and the next step."""


@dataclass(frozen=True)
class TargetColumns:
    """The columns that hold the target of a text."""

    key: str
    """The setting that names them, for messages."""
    names: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], str], Target]
    """Makes the target of a row from its values by column; None if it is missing.

    The second argument is the row's place: `a.csv, line 7`. It raises ValueError, with place and
    column, if a value has a type that no target has.
    """
    holds_class: bool = False
    """True if the target is the name of a class. A hub may store its number instead, from 0."""


NO_TARGET = TargetColumns("", (), lambda values, place: None)
"""For texts that are read without a target."""


class TargetTable(Protocol):
    """The targets of one table, not checked yet."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def targets(self) -> list[Target]:
        """The target of each row."""

    @property
    def place(self) -> Callable[[int], str]:
        """Returns the place of row i for a person: `a.csv, line 7`."""


def without_fraction(value: Any) -> Any:
    """Undo decimal types of whole numbers; NaN is missing.

    pandas writes whole numbers with gaps as floats, and databases write them as decimals.
    """
    if not isinstance(value, float | Decimal):
        return value
    if math.isnan(value):
        return None
    if not math.isfinite(value):
        return value
    whole = int(value)
    return whole if value == whole else value


def describe(value: Any) -> tuple[str, str]:
    """Return the type of a value for people, and the step that makes it a text."""
    kind = type(value).__name__
    for types, name, step in _STEPS:
        if isinstance(value, types):
            return f"{name} ({kind})", step
    return kind, "Write it as text"
