"""The outcome of one check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from wardround.common.words import cleaned, shown

SEE_ABOVE = "See the finding above first."


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    It may name paths, labels and counts: only the site itself may read it.
    """

    check: str
    """Its name in the table of checks."""
    state: Literal["ok", "warning", "problem"]
    """`problem`: the site cannot take part. `warning`: it can, but read this first."""
    message: str
    """The fact that was found."""
    next_step: str = ""
    """The step that solves it; empty if no step is needed."""


class NotChecked(Exception):
    """Another check failed that this one depends on. Args: the reason, the next step."""


def ok(message: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding("", "ok", message)


def warning(message: str, next_step: str = "") -> Finding:
    """Return a finding that somebody should look at."""
    return Finding("", "warning", message, next_step)


def problem(message: str, next_step: str) -> Finding:
    """Return a finding that keeps the site from taking part."""
    return Finding("", "problem", message, next_step)


def split_step(error: ValueError) -> tuple[str, str]:
    """Split the text of an error into message and next step, its last sentence."""
    message, _, step = str(error).rpartition(". ")
    return (message, step) if message else (step, "")


def run_check(name: str, check: Callable[[], Finding]) -> Finding:
    """Run one check, and turn an error into a finding.

    Names in files, invitations and certificates were written by others, so control
    characters are removed from the texts.
    """
    try:
        found = check()
    except NotChecked as error:
        reason, step = error.args
        found = warning(f"not checked: {reason}", step)
    except PermissionError as error:
        found = problem(
            f"{error.filename} cannot be read by this user",
            "Give this user read access to the file and to the folders above it.",
        )
    except ValueError as error:
        found = problem(*split_step(error))
    return Finding(name, found.state, cleaned(found.message), cleaned(found.next_step))


def listed(names: Iterable[str]) -> str:
    """Return names that others chose, as one safe line."""
    return ", ".join(map(shown, names))
