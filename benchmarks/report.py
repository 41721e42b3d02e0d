"""The output of a benchmark: a table, JSON for tools, and the kind of machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from wardround.common.versions import PACKAGES

_PACKAGES = (*PACKAGES, "numpy")


@dataclass
class Samples:
    """All measurements: by row and quantity, one value for each repeat, in order."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, row: str, **measured: float) -> None:
        """Add one repeat of a row."""
        for name, value in measured.items():
            self.values.setdefault(row, {}).setdefault(name, []).append(value)

    def median(self, row: str, name: str) -> float | None:
        """Return the median over the repeats; None if nothing was measured."""
        found = self.values.get(row, {}).get(name, [])
        return median(found) if found else None

    def first(self, row: str, name: str) -> float | None:
        """Return the value of the first repeat; None if nothing was measured."""
        found = self.values.get(row, {}).get(name, [])
        return found[0] if found else None

    def ratio(self, row: str, base: str, name: str) -> float | None:
        """Return the median of row / base by repeat: a disturbance hits both of a pair."""
        pairs = zip(
            self.values.get(row, {}).get(name, []),
            self.values.get(base, {}).get(name, []),
            strict=False,
        )
        ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
        return median(ratios) if ratios else None


Cell = str | float | int | None


@dataclass
class Table:
    """Rows under columns; `None` is printed as a dash."""

    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)

    def text(self) -> str:
        """Return the table as Markdown with aligned columns."""
        cells = [
            list(self.columns),
            *([_shown(cell) for cell in row] for row in self.rows),
        ]
        widths = [
            max(len(row[column]) for row in cells)
            for column in range(len(self.columns))
        ]
        lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells]
        lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
        return "\n".join(lines) + "\n"

    def records(self) -> list[dict[str, Cell]]:
        """Return the rows by column, for tools."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        digits = (
            0
            if abs(cell) >= 1000
            else 1
            if abs(cell) >= 100
            else 2
            if abs(cell) >= 1
            else 3
        )
        return f"{cell:.{digits}f}"
    return str(cell)


@dataclass
class Report:
    """The result of one benchmark."""

    name: str
    table: Table
    samples: Samples
    notes: list[str] = field(default_factory=list)
    more: dict[str, Table] = field(default_factory=dict)
    """Further tables, by title."""

    def write(self, options: argparse.Namespace) -> None:
        """Print the table and its notes, and write everything to the file of `--json`."""
        at = machine()
        lines = [
            f"{self.name}: {command(self.name)}",
            f"{at['date']}, {at['summary']}",
            "",
        ]
        sys.stdout.write("\n".join(lines) + "\n" + self.table.text())
        for title, table in self.more.items():
            sys.stdout.write(f"\n{title}:\n\n{table.text()}")
        for note in self.notes:
            sys.stdout.write(f"\n- {note}")
        sys.stdout.write("\n")
        if options.json is not None:
            content = {
                "benchmark": self.name,
                "command": command(self.name),
                "machine": at,
                "table": self.table.records(),
                "more": {title: table.records() for title, table in self.more.items()},
                "samples": self.samples.values,
                "notes": self.notes,
            }
            options.json.write_text(
                json.dumps(content, indent=2) + "\n", encoding="utf-8"
            )


def carry_out(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], Report],
    plot: Callable[[Report, argparse.Namespace], None],
) -> int:
    """Run a benchmark: measure in a temporary folder, report, and draw if `--plot` is given.

    Args:
        plot: draws to `options.plot`.
    """
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = measure(options, folder.absolute())
    report.write(options)
    if options.plot is not None:
        plot(report, options)
    return 0


def parser(about: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything measured there too"
    )
    made.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the table there (PNG or SVG)"
    )
    made.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave logs and run folders there"
    )
    made.add_argument(
        "--quick", action="store_true", help="sizes of seconds, to see that it runs"
    )
    made.add_argument(
        "--repeats",
        type=int,
        default=2,
        help="how often each row is measured, in turns",
    )
    return made


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of an option such as `1,2,8`."""
    return tuple(int(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """Return the names of an option such as `tiny,base`."""
    return tuple(text.split(","))


def say(text: str) -> None:
    """Print a line of progress on standard error."""
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")
    sys.stderr.flush()


def command(name: str) -> str:
    """Return the command that started this benchmark."""
    return shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """Return the kind of machine and the day, without the machine's name."""
    cores, memory = (
        len(os.sched_getaffinity(0)),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    packages = {name: found for name in _PACKAGES if (found := _version(name))}
    cpu, now = _cpu(), datetime.now(UTC)
    gibibytes = memory / 2**30
    where = f"{cores} cores ({cpu}), {gibibytes:.0f} GiB, Python {platform.python_version()}"
    listed = ", ".join(f"{name} {found}" for name, found in packages.items())
    return {
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
        "cpu": cpu,
        "cores": cores,
        "memory_gib": round(gibibytes, 1),
        "python": platform.python_version(),
        "packages": packages,
        "summary": f"{where}, {listed}",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return models[0] if models else platform.machine()
