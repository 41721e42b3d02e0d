"""Findings as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wardround.client.kit.checks.findings import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a table on a terminal, and plain lines of the same words elsewhere."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for finding in findings:
            typer.echo(_line(finding))
        return
    table = Table("", "check", "finding", show_lines=False)
    for finding in findings:
        text = finding.message
        if finding.next_step:
            text += f"\n-> {finding.next_step}"
        state = Text(finding.state, _COLOURS[finding.state])
        table.add_row(state, finding.check, Text(text))
    console.print(table)


def _line(finding: Finding) -> str:
    line = f"{finding.state:<8}{finding.check:<12}{finding.message}"
    if finding.next_step:
        line += f"\n{'':<20}-> {finding.next_step}"
    return line
