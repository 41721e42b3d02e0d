"""Health of a run: signs in its measurements that the model has collapsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Condition:
    """A sign of a collapse."""

    finds: Callable[[Any], int | None]
    """Judges a `Scored`: None if the round is sound, the number of the output that is at fault,
    or 0 if it is none in particular."""
    words: str
    """The reason for people; `{label}` in it is the name of that output."""
    is_divergence: bool = False
    """True if smaller steps help; otherwise larger steps of the new head do."""


class Scored(Protocol):
    """The numbers of one measured round that the conditions use."""

    @property
    def round(self) -> int:
        """Number of the round."""

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Every condition of the task by its name, the clearest sign first."""
