"""What personal models came to in run folders, as a table: `python -m studies.personal RUN_DIR...`.

A run counts once, with the mean over its clients; runs that differ in the seed alone make a line, with the
standard error of their mean.
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
from wardround.common.personal import PersonalRecord
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


def outcome_of(record: PersonalRecord) -> dict[str, float]:
    """Means over the clients of a run, by column; without those for which something was not made."""
    columns: dict[str, list[float]] = {}
    for site in record.sites:
        tested = dict(site.candidates) | {"chosen": site.candidates[site.chosen]}
        for method, candidate in tested.items():
            columns.setdefault(method, []).append(candidate.test.accuracy)
            if candidate.everyone is not None:
                columns.setdefault(f"{method}, everyone", []).append(
                    candidate.everyone.accuracy
                )
    return {
        name: fmean(values)
        for name, values in columns.items()
        if len(values) == len(record.sites)
    }


def table(folders: Iterable[Path]) -> str:
    """Markdown, a line for each way to deal texts: means with their standard error, and which methods were
    chosen how often; below, differences in points, with their 95 % interval over seeds and each seed's.

    Raises:
        ValueError: a folder holds no personal models.
    """
    lines: dict[str, list[dict[str, float]]] = {}
    chosen: dict[str, Counter[str]] = {}
    for folder in folders:
        settings, record = RunFolder(folder).settings(), PersonalRecord.read(folder)
        if settings is None or record is None or not record.sites:
            raise ValueError(
                f"{folder} holds no personal models. Run it with personalisation=all."
            )
        lines.setdefault(_deal(settings), []).append(outcome_of(record))
        chosen.setdefault(_deal(settings), Counter()).update(
            site.chosen for site in record.sites
        )
    means = [
        [
            deal,
            str(len(runs)),
            *(_mean([run.get(name) for run in runs]) for name in COLUMNS),
            _told(chosen[deal]),
        ]
        for deal, runs in lines.items()
    ]
    apart = [
        [deal, *(_apart(runs, *names) for names in DIFFERENCES)]
        for deal, runs in lines.items()
    ]
    heads = (
        ["texts dealt", "seeds", *COLUMNS, "takes"],
        ["points", *map(" − ".join, DIFFERENCES)],
    )
    return "\n\n".join(
        _rows(head, rows) for head, rows in zip(heads, (means, apart), strict=True)
    )


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _told(chosen: Counter[str]) -> str:
    return ", ".join(f"{method} {count}" for method, count in chosen.most_common())


def _apart(runs: list[dict[str, float]], one: str, other: str) -> str:
    values = [
        100 * (run[one] - run[other]) for run in runs if {one, other} <= run.keys()
    ]
    if not values:
        return "–"
    bounds = interval(values)
    told = "" if bounds is None else " [{:+.1f}, {:+.1f}]".format(*bounds)
    return (
        f"{fmean(values):+.1f}{told} ({', '.join(f'{value:+.1f}' for value in values)})"
    )


def _deal(settings: Settings) -> str:
    how = settings.partition
    alpha = "" if how.alpha is None else f" {how.alpha:g}"
    return f"{how.name}{alpha}, {settings.data.name}, K = {settings.num_clients}"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    error = f" ± {stdev(known) / sqrt(len(known)):.3f}" if len(known) > 1 else ""
    return f"{fmean(known):.3f}{error}"


if __name__ == "__main__":
    typer.echo(table(map(Path, sys.argv[1:])))
