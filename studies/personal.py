"""What personal models came to in run folders, as a table: `python -m studies.personal RUN_DIR...`.

A run counts once, with the mean over its clients; runs that differ in the seed alone make a line, with the
standard error of their mean.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import typer

from common.personal import PersonalRecord
from common.settings import Settings
from server.run_folder import RunFolder

METHODS = ("local", "global", "fine_tuned", "mixture", "chosen")
COLUMNS = (
    *METHODS,
    "mixture − fine_tuned",
    *(f"{method}, everyone" for method in METHODS[:-1]),
    "mixture − fine_tuned, everyone",
)


def outcome_of(record: PersonalRecord) -> dict[str, float]:
    """Means over the clients of a run, by column; without those for which something was not made."""
    columns: dict[str, list[float]] = {}
    for site in record.sites:
        tested = dict(site.candidates) | {"chosen": site.candidates[site.chosen]}
        for method, candidate in tested.items():
            columns.setdefault(method, []).append(candidate.test.accuracy)
            if candidate.everyone is not None:
                columns.setdefault(f"{method}, everyone", []).append(candidate.everyone.accuracy)
    means = {name: fmean(values) for name, values in columns.items() if len(values) == len(record.sites)}
    for asked in ("", ", everyone"):
        if {f"mixture{asked}", f"fine_tuned{asked}"} <= means.keys():
            means[f"mixture − fine_tuned{asked}"] = means[f"mixture{asked}"] - means[f"fine_tuned{asked}"]
    return means


def table(folders: Iterable[Path]) -> str:
    """Markdown, a line for each way to deal texts.

    Raises:
        ValueError: a folder holds no personal models.
    """
    lines: dict[str, list[dict[str, float]]] = {}
    for folder in folders:
        settings, record = RunFolder(folder).settings(), PersonalRecord.read(folder)
        if settings is None or record is None or not record.sites:
            raise ValueError(f"{folder} holds no personal models. Run it with personalisation=all.")
        lines.setdefault(_deal(settings), []).append(outcome_of(record))
    rows = [
        f"| {deal} | {len(runs)} | {' | '.join(_mean([run.get(name) for run in runs]) for name in COLUMNS)} |"
        for deal, runs in lines.items()
    ]
    return "\n".join(
        [f"| texts dealt | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|", *rows]
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
