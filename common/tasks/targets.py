"""Targets as a source holds them: the columns to read, and tables of targets with their places."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Target = Any
"""What is to be learned of one text, as it was found: a JSON value. None if it is missing."""


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
    """Undo the floats of pandas, which writes whole numbers with gaps so; NaN is missing."""
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() else value
