"""The terminal: one bar for a sweep, one for a run's rounds; lines if it is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from wardround.common.words import cleaned

if TYPE_CHECKING:
    from wardround.server.run_folder import SweepRow


class Display:
    """Shows the progress of a sweep and of its current run, on standard error."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._sweep: TaskID | None = None
        self._rounds: TaskID | None = None
        self._title = ""
        self._total = 0
        self._started = 0.0
        self._first = -1
        """The first round that was shown; -1 before that."""

    def _bars(self) -> Progress | None:
        """Return the live bars; None if standard error is not a terminal."""
        if self._progress is None and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self._progress.start()
        return self._progress

    def start_sweep(self, title: str, total: int, done: int) -> None:
        """Show `done` of `total` cells."""
        bars = self._bars()
        if bars is None:
            self.say(f"{title}: {done} of {total} cells done")
        elif self._sweep is None:
            self._sweep = bars.add_task(
                title, total=total, completed=done, note="cells"
            )
        else:
            bars.update(self._sweep, description=title, total=total, completed=done)

    def start_rounds(self, title: str, total: int) -> None:
        """Begin a new run of `total` rounds."""
        self._title = title
        self._total = total
        self._first = -1
        bars = self._bars()
        if bars is None:
            return
        if self._rounds is not None:
            bars.remove_task(self._rounds)
        self._rounds = bars.add_task(title, total=total, note="loading")

    def show_updates(self, round: int, num_done: int, num_clients: int) -> None:
        """Show the number of clients that are done in a round."""
        if self._progress is not None and self._rounds is not None:
            note = f"round {round}: {num_done}/{num_clients} clients"
            completed = round - 1 + num_done / num_clients
            self._progress.update(self._rounds, completed=completed, note=note)

    def show_round(self, round: int, note: str) -> None:
        """Show that a round is done."""
        if self._progress is not None and self._rounds is not None:
            self._progress.update(self._rounds, completed=round, note=note)
        elif note:
            time_left = self._time_left(round)
            self.say(f"{self._title}: round {round}/{self._total}  {note}{time_left}")

    def _time_left(self, round: int) -> str:
        if self._first < 0:
            self._first = round
            self._started = time.monotonic()
            return ""
        if round >= self._total:
            return ""
        per_round = (time.monotonic() - self._started) / max(1, round - self._first)
        return f"  {per_round * (self._total - round):.0f} s left"

    def say(self, text: str) -> None:
        """Print one line, above the bars if there are any. Control characters are removed."""
        text = cleaned(text)
        if self._progress is not None:
            self._progress.console.print(text, soft_wrap=True, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal

    def print_rows(self, rows: Sequence[SweepRow]) -> None:
        """Print the result of a sweep as a table, on standard output."""
        table = Table(
            "model",
            "data",
            "K",
            "seed",
            "status",
            "accuracy",
            "of K = 1",
            "rounds to target",
        )
        for row in rows:
            accuracy = row.accuracy_at_budget
            baseline = row.baseline_accuracy
            accuracy_text = "-"
            share_text = "-"
            if accuracy is not None:
                accuracy_text = f"{accuracy:.4f}"
                share_text = f"{accuracy / baseline:.0%}" if baseline else "-"
            num_rounds = row.rounds_to_target
            table.add_row(
                f"{row.model} {row.arm}".rstrip(),
                row.data,
                str(row.num_clients),
                str(row.seed),
                row.status,
                accuracy_text,
                share_text,
                "-" if num_rounds is None else str(num_rounds),
            )
        Console(highlight=False).print(table)

    def close(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._sweep = self._rounds = None


_display: Display | None = None


def display() -> Display:
    """Return the display of this process: one terminal, one display."""
    global _display
    if _display is None:
        _display = Display()
    return _display
