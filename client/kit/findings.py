"""What one check of a site says, and what it may take for granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check. It may name paths, labels and counts: it is for the site's eyes."""

    check: str
    """Row of the table in `client/kit/checks.py`."""
    state: State
    """`problem`: the site cannot take part like this; `warning`: it can, and should know."""
    message: str
    """What was found."""
    next_step: str = ""
    """What to do about it; empty where nothing has to be done."""


def from_error(check: str, error: ValueError) -> Finding:
    """A problem in the words of an error, whose last sentence is the next step."""
    message, _, step = str(error).rpartition(". ")
    return Finding(check, "problem", message, step) if message else Finding(check, "problem", step)


@dataclass(frozen=True)
class Options:
    """What the run will ask for, as far as the site was told."""

    expect: Mapping[str, str] = field(default_factory=dict)
    """Versions that must be installed, by package; `python` is one of them."""
    labels: tuple[str, ...] = ()
    """The consortium's label names; () where they were not told."""
    model: str | None = None
    """Hub id or folder of the pre-trained model, where site.yaml names no local copy."""
    max_length: int = 128
    """Tokens after which texts are cut."""
    batch_size: int = 32
    """Examples of one optimiser step."""
    timeout_seconds: float = 5.0
    """Longest wait for each step on the network."""
