"""A table of the personal models in run folders: `python -m studies.personal RUN_DIR...`.

A run counts once, with the mean over its clients. Runs that differ only in the seed share a line,
with the standard error of their mean.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import typer

from studies.pairs import interval
from wardround.common.personal_record import PersonalRecord
from wardround.common.settings.tree import Settings
from wardround.server.run_folder import RunFolder

METHODS = ("local", "global", "fine_tuned", "mixture", "chosen")
COLUMNS = (*METHODS, *(f"{method}, everyone" for method in METHODS[:-1]))
DIFFERENCES = (
    ("fine_tuned", "global"),
    ("mixture", "global"),
    ("mixture", "fine_tuned"),
    ("fine_tuned", "local"),
    ("mixture, everyone", "fine_tuned, everyone"),
    ("mixture, everyone", "global, everyone"),
)


def mean_accuracies(record: PersonalRecord) -> dict[str, float]:
    """Return the mean accuracy over the clients by column, without columns that a client lacks."""
    columns: dict[str, list[float]] = {}
    for site in record.sites:
        tested = dict(site.candidates) | {"chosen": site.candidates[site.chosen]}
        for method, candidate in tested.items():
            columns.setdefault(method, []).append(candidate.test.metric("accuracy"))
            if candidate.everyone is not None:
                columns.setdefault(f"{method}, everyone", []).append(
                    candidate.everyone.metric("accuracy")
                )
    return {
        name: fmean(values)
        for name, values in columns.items()
        if len(values) == len(record.sites)
    }


def table(folders: Iterable[Path]) -> str:
    """Return two Markdown tables, with a line for each way to deal the texts.

    The first has means with standard errors, and how often each method was chosen. The second has
    differences in points, with the 95 % interval over seeds and the value of each seed.

    Raises:
        ValueError: a folder holds no personal models.
    """
    lines: dict[str, list[dict[str, float]]] = {}
    chosen: dict[str, Counter[str]] = {}
    for folder in folders:
        settings = RunFolder(folder).settings()
        record = PersonalRecord.read(folder)
        if settings is None or record is None or not record.sites:
            raise ValueError(
                f"{folder} holds no personal models. Run it with personalisation=all."
            )
        deal = _deal(settings)
        lines.setdefault(deal, []).append(mean_accuracies(record))
        counts = chosen.setdefault(deal, Counter())
        counts.update(site.chosen for site in record.sites)
    means = []
    differences = []
    for deal, runs in lines.items():
        columns = [_mean([run.get(name) for run in runs]) for name in COLUMNS]
        means.append([deal, str(len(runs)), *columns, _counts(chosen[deal])])
        differences.append([deal, *(_difference(runs, *pair) for pair in DIFFERENCES)])
    means_head = ["texts dealt", "seeds", *COLUMNS, "takes"]
    differences_head = ["points", *map(" − ".join, DIFFERENCES)]
    return f"{_rows(means_head, means)}\n\n{_rows(differences_head, differences)}"


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _counts(chosen: Counter[str]) -> str:
    return ", ".join(f"{method} {count}" for method, count in chosen.most_common())


def _difference(runs: list[dict[str, float]], one: str, other: str) -> str:
    values = [
        100 * (run[one] - run[other]) for run in runs if {one, other} <= run.keys()
    ]
    if not values:
        return "–"
    text = f"{fmean(values):+.1f}"
    bounds = interval(values)
    if bounds is not None:
        low, high = bounds
        text += f" [{low:+.1f}, {high:+.1f}]"
    return f"{text} ({', '.join(f'{value:+.1f}' for value in values)})"


def _deal(settings: Settings) -> str:
    partition = settings.partition
    name: str = partition.name
    if partition.alpha is not None:
        name += f" {partition.alpha:g}"
    return f"{name}, {settings.data.name}, K = {settings.num_clients}"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    error = f" ± {stdev(known) / sqrt(len(known)):.3f}" if len(known) > 1 else ""
    return f"{fmean(known):.3f}{error}"


if __name__ == "__main__":
    typer.echo(table(map(Path, sys.argv[1:])))
