"""The findings of a study on a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wardround.server.report.figures import Drawing

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Findings:
    """A study's page about a sweep: its template, and a file of verdicts."""

    template: Path
    """Template that extends `sweep.j2`."""
    file: str
    entries: Sequence[Any]
    """Dataclasses. They are the content of the file, and `entries` in the template."""
    drawings: Sequence[Drawing] | None = None
    """Figures instead of the sweep's own."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """More names for the template."""
