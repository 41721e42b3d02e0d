"""The rules by which the paper's claims are judged, with their thresholds.

The paper says "sharp", "near chance" and "mostly" without numbers. The thresholds are ours. They
are defined only here, and every verdict is printed with them. Accuracies are shares in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import log2, nan
from statistics import fmean
from typing import Any, Literal

import pandas as pd
import yaml

from wardround.common.places import CONF
from wardround.server.report.names import (
    display_name,
    joined,
)
from wardround.server.report.run import RunData
from wardround.server.report.sweep import (
    SweepData,
)

Finding = Literal["holds", "fails", "open"]
AXES = ["model", "data", "num_clients"]
Key = tuple[str, str, int]
"""Model, data set, number of clients K."""
Shares = Mapping[int, float]
"""Retained accuracy by K: 1 is the accuracy of K = 1, 0 is chance."""
Found = tuple[Finding, dict[str, Any], str]
"""A finding, its numbers, and the same in words."""
Rule = Callable[[pd.DataFrame], Found]
"""A rule judges rows of `gather`'s table."""

_PAPER = yaml.safe_load((CONF / "experiment" / "paper.yaml").read_text())["sweep"]
PAPER_MODELS, PAPER_DATA, PAPER_CLIENTS = (
    tuple(_PAPER[axis]) for axis in ("model", "data", "num_clients")
)

SHARP_DROP = 0.25
"""A drop is sharp if one doubling of K loses more retained accuracy than this."""
RISE_TOLERANCE = 0.02
"""The end rises only if the largest K has more retained accuracy than K = 1 plus this."""
NEAR_CHANCE = 0.10
"""A run is near chance if its retained accuracy is at most this."""
STRUGGLING_SHARE = 0.90
"""A run struggles below this share of the K = 1 accuracy (the paper's own 90 %)."""
MOSTLY = 0.75
"""Share of cells that has to reach the target for "mostly"."""
AT_CHANCE_MARGIN = 0.05
"""A round is at chance if its accuracy is at most 1 / number of labels plus this margin.

Two standard errors of the paper's test sets are 0.01. This rule is for a plateau that readers see
in a figure. `wardround.common.tasks.label_health.chance_limit` is another rule: it judges a run
by the noise of its own test set.
"""
LONG_PLATEAU = 0.20
"""A plateau is long if it lasts for this share of the budget's rounds."""
LEARNED_MARGIN = 0.05
"""K = 1 must beat chance by more than this. Otherwise no decline can be measured."""
STEEPER_MARGIN = 0.01
"""One decline is steeper than another if it loses this much more mean retained accuracy."""


def gather(sweep: SweepData) -> pd.DataFrame:
    """Return a row for each of the paper's cells, over all its seeds.

    The index is model, data and num_clients. A value is NaN unless every seed has it. Columns:

    - accuracy: mean at the budget; baseline: accuracy of K = 1; chance; budget: in rounds;
    - reached: 1 if most seeds reached the target; settled: the same, but the accuracy for K = 1;
    - curves: test accuracy by round, one curve a seed;
    - learned: True if the baseline clearly beats chance; share: retained accuracy.
    """
    rows = {key: _draw_together(seeds) for key, seeds in sweep.cells.groupby(AXES)}
    index = pd.MultiIndex.from_product(
        [PAPER_MODELS, PAPER_DATA, PAPER_CLIENTS], names=AXES
    )
    columns = ["accuracy", "reached", "curves"]
    table = pd.DataFrame(
        [rows.get(key, (nan, nan, None)) for key in index], index, columns
    )
    for column, read in (("chance", sweep.chance), ("budget", sweep.budget)):
        by_data = {data: read(data) or nan for data in PAPER_DATA}
        table[column] = [by_data[data] for _, data, _ in index]
    table["baseline"] = [table["accuracy"][model, data, 1] for model, data, _ in index]
    table["learned"] = table["baseline"] - table["chance"] > LEARNED_MARGIN
    share = (table["accuracy"] - table["chance"]) / (
        table["baseline"] - table["chance"]
    )
    table["share"] = share.where(table["learned"])
    table["settled"] = table["reached"].where(
        index.get_level_values("num_clients") > 1, table["accuracy"]
    )
    return table


def _draw_together(
    seeds: pd.DataFrame,
) -> tuple[float, float, list[list[float]] | None]:
    """Return accuracy, reached and curves of one cell."""
    is_reached = seeds["outcome"] == "reached"
    is_settled = seeds["outcome"].isin(["reached", "not reached"])
    curves = [_curve(run) for run in seeds["run"]]
    # A curve that a collapse cut off cannot show whether the plateau would have ended.
    is_whole = (seeds["status"] == "finished") & (seeds["outcome"] != "collapsed")
    return (
        fmean(seeds["accuracy"]),
        float(is_reached.mean() > 0.5) if is_settled.all() else nan,
        curves if is_whole.all() and all(curves) else None,
    )


def _curve(run: RunData | None) -> list[Any]:
    """Return the test accuracy by round; empty if one is missing."""
    accuracies = [record.score for record in run.rounds] if run else []
    return [] if None in accuracies else accuracies


def largest_drop(shares: Shares, ends_from: int = 2) -> tuple[int, float]:
    """Return the K at which the largest drop ends, and its loss of retained accuracy per doubling.

    Only steps that end at K >= `ends_from` count. If a K in between is missing, the loss is spread
    evenly over the doublings, so that the result is never larger than the true largest drop.
    """
    steps = [
        (high, (shares[low] - shares[high]) / log2(high / low))
        for low, high in pairwise(sorted(shares))
        if high >= ends_from
    ]
    return max(steps, key=lambda step: step[1], default=(0, 0.0))


def declines_gradually(shares: Shares, is_whole: bool) -> tuple[Finding, str]:
    """Holds if no doubling loses more than SHARP_DROP and the end rises by at most
    RISE_TOLERANCE."""
    at, drop = largest_drop(shares)
    end = max(shares)
    note = (
        f"largest drop per doubling {drop:.2f} (at K = {at}), "
        f"{shares[end]:.2f} left at K = {end}"
    )
    if drop > SHARP_DROP:
        return "fails", note
    if not is_whole:
        return "open", note
    return _holds(shares[end] <= 1 + RISE_TOLERANCE), note


def drops_steeply(
    shares: Shares, is_whole: bool, ends_from: int
) -> tuple[Finding, str]:
    """Holds if a doubling that ends at `ends_from` clients or more loses more than SHARP_DROP."""
    at, drop = largest_drop(shares, ends_from)
    finding = _holds(drop > SHARP_DROP) if drop > SHARP_DROP or is_whole else "open"
    return finding, f"largest drop per doubling {drop:.2f} (at K = {at})"


def is_near_chance(shares: Shares, is_whole: bool) -> tuple[Finding, str]:
    """Holds if at most NEAR_CHANCE of the accuracy above chance is left at the largest K."""
    share = shares[max(shares)]
    note = f"{share:.2f} of the accuracy above chance is left"
    return _holds(share <= NEAR_CHANCE), note


def by_k(rule: Callable[..., tuple[Finding, str]], *options: int) -> Rule:
    """Turn a rule on retained accuracy into one on cells. It is open if K = 1 is missing or
    learned nothing."""

    def judge_cells(cells: pd.DataFrame) -> Found:
        shares = cells["share"].droplevel(["model", "data"]).dropna().to_dict()
        numbers = {"retained_by_k": {str(k): round(s, 4) for k, s in shares.items()}}
        if len(shares) < 2:
            return "open", numbers, ""
        is_whole = len(shares) == len(cells)
        finding, note = rule(shares, is_whole, *options)
        return finding, numbers, note

    return judge_cells


def struggles(cells: pd.DataFrame) -> Found:
    """Holds if the last cell is below STRUGGLING_SHARE of the K = 1 accuracy at the budget."""
    cell = cells.iloc[-1]
    if pd.isna(cell.share):
        return "open", {}, ""
    accuracy = float(cell.accuracy)
    baseline = float(cell.baseline)
    numbers = {
        "accuracy": accuracy,
        "baseline": baseline,
        "share": round(accuracy / baseline, 4),
    }
    note = f"{accuracy:.3f}, {accuracy / baseline:.0%} of K = 1"
    return _holds(accuracy < STRUGGLING_SHARE * baseline), numbers, note


def misses_target(cells: pd.DataFrame) -> Found:
    """Holds if the last cell did not reach the target."""
    cell = cells.iloc[-1]
    if pd.isna(cell.reached) or not cell.learned:
        return "open", {}, ""
    note = (
        "target reached"
        if cell.reached
        else "target not reached within the second threshold"
    )
    return _holds(not cell.reached), {"reached": bool(cell.reached)}, note


def mostly_reached(cells: pd.DataFrame) -> Found:
    """Holds if at least MOSTLY of the cells with K > 1 reach the target.

    It is open until all cells are settled, unless it already fails.
    """
    cells = cells[cells.index.get_level_values("num_clients") > 1]
    settled = cells["reached"][cells["learned"]].dropna()
    total = len(cells)
    reached = int((settled == 1).sum())
    missed = int((settled == 0).sum())
    finding: Finding = "open"
    if (total - missed) / total < MOSTLY:
        finding = "fails"
    elif len(settled) == total:
        finding = "holds"
    note = f"{reached} of {total} cells reached the target, {missed} did not"
    return finding, {"reached": reached, "missed": missed, "cells": total}, note


def rounds_at_chance(curve: Sequence[float], chance: float) -> int:
    """Return how many rounds the curve stays at chance at its start; all if it never leaves chance.

    Args:
        curve: test accuracy of round 0, 1, 2 …
    """
    left = (
        number
        for number, accuracy in enumerate(curve)
        if accuracy > chance + AT_CHANCE_MARGIN
    )
    return max(next(left, len(curve)) - 1, 0)


def waits_then_moves(curve: Sequence[float], chance: float, budget: float) -> bool:
    """Return True if the curve is at chance for LONG_PLATEAU of the budget, and above it later."""
    return LONG_PLATEAU * budget <= rounds_at_chance(curve, chance) < len(curve) - 1


def never_moves(curve: Sequence[float], chance: float, budget: float) -> bool:
    """Return True if the curve is at chance in every round, up to the budget at least."""
    return rounds_at_chance(curve, chance) == len(curve) - 1 >= budget


def some_curve(rule: Callable[[Sequence[float], float, float], bool]) -> Rule:
    """Turn a rule on a curve into one on cells.

    It holds if it holds for one curve. It fails only if all curves are known.
    """

    def judge_cells(cells: pd.DataFrame) -> Found:
        known = cells.dropna(subset=["curves", "chance", "budget"]).droplevel(
            ["model", "data"]
        )
        waited = {}
        seen: list[int] = []
        for k, seeds, chance, budget in known[
            ["curves", "chance", "budget"]
        ].itertuples():
            waited[k] = [rounds_at_chance(curve, chance) for curve in seeds]
            if any(rule(curve, chance, budget) for curve in seeds):
                seen.append(k)
        if not waited:
            return "open", {}, ""
        numbers = {"rounds_at_chance_by_k": waited, "seen_with_k": seen}
        if seen:
            return "holds", numbers, f"seen with K = {joined(seen)}"
        finding: Finding = "fails" if len(known) == len(cells) else "open"
        return finding, numbers, f"not seen with K = {joined(waited)}"

    return judge_cells


def steepest_on_imdb(cells: pd.DataFrame) -> Found:
    """Holds if IMDB loses more retained accuracy (mean over K > 1) than any other
    data set, by STEEPER_MARGIN."""
    several = cells["share"][cells.index.get_level_values("num_clients") > 1]
    losses = (
        (1 - several)
        .groupby("data", sort=False)
        .agg(lambda lost: sum(lost) / len(lost))
        .dropna()
    )
    numbers: dict[str, Any] = {
        "mean_loss": {data: round(loss, 4) for data, loss in losses.items()}
    }
    if len(losses) < len(PAPER_DATA):
        return "open", numbers, ""
    words = ", ".join(
        f"{display_name(data)} {loss:.2f}" for data, loss in losses.items()
    )
    is_steepest = losses["imdb"] > losses.drop("imdb").max() + STEEPER_MARGIN
    return _holds(is_steepest), numbers, f"mean loss over K > 1: {words}"


def _holds(condition: bool) -> Finding:
    return "holds" if condition else "fails"
