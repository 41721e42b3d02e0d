"""The paper's five claims, judged from a sweep: each is cut into parts that hold, fail or stay open.

The paper says "sharp", "near chance" and "mostly" without numbers: the thresholds are ours, they are named
here and nowhere else, and every verdict is printed with them. Accuracies are shares in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from math import log2, nan
from statistics import fmean
from typing import Any, Literal

import pandas as pd
import yaml

from wardround.common.places import CONF
from wardround.server.compose import compose
from wardround.server.report.findings import TEMPLATES, Findings
from wardround.server.report.names import (
    display_name,
    joined,
)
from wardround.server.report.run import RunData
from wardround.server.report.sweep import (
    DEFAULT_TARGET_FRACTION,
    SweepData,
)

Finding = Literal["holds", "fails", "open"]
Verdict = Literal["supported", "contradicted", "not_tested"]
AXES = ["model", "data", "num_clients"]
Key = tuple[str, str, int]
"""Model, data set, number of clients K."""
Shares = Mapping[int, float]
"""Retained accuracy by K: 1 is all that K = 1 learned above chance, 0 is guessing."""
Found = tuple[Finding, dict[str, Any], str]
"""What a rule finds, the numbers behind it, and the same in words."""
Rule = Callable[[pd.DataFrame], Found]
"""Takes rows of `gather`'s table."""

_PAPER = yaml.safe_load((CONF / "experiment" / "paper.yaml").read_text())["sweep"]
PAPER_MODELS, PAPER_DATA, PAPER_CLIENTS = (
    tuple(_PAPER[axis]) for axis in ("model", "data", "num_clients")
)
# What the paper's text and its authors' code agree on (section 3.4). The switches in which the two differ
# (head, mask, shuffling, last batch, weighting, columns) are free: both are "the paper".
PAPER_KEYS = (
    *(
        "train.local_epochs",
        "train.batch_size",
        "train.learning_rate",
        "train.max_length",
        "train.optimizer",
    ),
    *(
        "train.weight_decay",
        "train.schedule",
        "train.max_grad_norm",
        "partition.name",
        "data.train_examples",
    ),
    *("data.test_examples", "data.budget_rounds", "data.second_threshold_rounds"),
)

SHARP_DROP = 0.25
"""Retained accuracy lost in one doubling of K above which the drop is sharp."""
RISE_TOLERANCE = 0.02
"""Retained accuracy by which the largest K may exceed K = 1 and still count as no rise."""
NEAR_CHANCE = 0.10
"""Retained accuracy at or below which a run is near chance."""
STRUGGLING_SHARE = 0.90
"""Share of the K = 1 accuracy below which a run struggles (the paper's own 90 %)."""
MOSTLY = 0.75
"""Share of cells that has to reach the target for "mostly"."""
AT_CHANCE_MARGIN = 0.05
"""A round sits at chance when its accuracy is at most 1 / number of labels plus this.

The one other rule, `wardround.server.diagnostics.collapse.chance_limit`, judges a run by the noise of its
own test set.
Here a plateau is meant that readers see in a figure: two standard errors of the paper's test sets are 0.01.
"""
LONG_PLATEAU = 0.20
"""Share of the budget's rounds that a plateau has to last to be long."""
LEARNED_MARGIN = 0.05
"""K = 1 has to beat chance by more than this; otherwise there is no decline to measure."""
STEEPER_MARGIN = 0.01
"""Mean retained accuracy by which one decline has to exceed another to be steeper."""
LARGE_CLIENTS = (8, 16, 32)
"""K "when the number of clients is high" (section 4.3): past the 4 of section 4.1."""
STEEP_FROM = (("imdb", 4), ("yelp_full", 8), ("ag_news", 8))
"""K at which DistilBERT's drop may end: past 4, but IMDB where the paper sees it struggle at 4 already."""
NEAR_CHANCE_ON = ("imdb", "yelp_full")
STRUGGLES_AT = (("imdb", 4), ("yelp_full", 16), ("ag_news", 16))
MISSES_AT = (("yelp_full", 16), ("imdb", 4))
_DISTIL = "distilbert"


@dataclass(frozen=True)
class Claim:
    """One claim with its verdict; the fields are the keys of `claims.json`."""

    id: int
    claim: str
    verdict: Verdict
    numbers: dict[str, Any]
    explanation: str


def gather(sweep: SweepData) -> pd.DataFrame:
    """One row for each of the paper's cells (index: model, data, num_clients), its seeds drawn together.

    Columns: accuracy (mean at the budget), reached (whether most seeds reached the target), settled (that,
    and accuracy for K = 1), curves (test accuracy by round, one a seed), chance, budget (rounds), baseline
    (accuracy of K = 1), learned (whether the baseline beats chance clearly), share (retained accuracy). NaN
    unless every seed is there.
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
    """Accuracy, reached and curves of one cell."""
    is_reached, is_settled = (
        seeds["outcome"] == "reached",
        seeds["outcome"].isin(["reached", "not reached"]),
    )
    curves = [_curve(run) for run in seeds["run"]]
    # A curve that a collapse cut off cannot show whether the plateau would have ended.
    is_whole = (seeds["status"] == "finished") & (seeds["outcome"] != "collapsed")
    return (
        fmean(seeds["accuracy"]),
        float(is_reached.mean() > 0.5) if is_settled.all() else nan,
        curves if is_whole.all() and all(curves) else None,
    )


def _curve(run: RunData | None) -> list[Any]:
    """Test accuracy by round; empty where one is missing."""
    accuracies = [record.accuracy for record in run.rounds] if run else []
    return [] if None in accuracies else accuracies


def largest_drop(shares: Shares, ends_from: int = 2) -> tuple[int, float]:
    """K at which the largest drop ends, and retained accuracy lost per doubling of K in that step.

    Only steps that end at K >= `ends_from` count. Where a K in between is missing the loss is spread
    evenly over the doublings, so that the figure is never larger than the true largest drop.
    """
    steps = [
        (high, (shares[low] - shares[high]) / log2(high / low))
        for low, high in pairwise(sorted(shares))
        if high >= ends_from
    ]
    return max(steps, key=lambda step: step[1], default=(0, 0.0))


def declines_gradually(shares: Shares, is_whole: bool) -> tuple[Finding, str]:
    """No drop in one doubling above SHARP_DROP, and no rise at the end above RISE_TOLERANCE."""
    (at, drop), end = largest_drop(shares), max(shares)
    note = f"largest drop per doubling {drop:.2f} (at K = {at}), {shares[end]:.2f} left at K = {end}"
    if drop > SHARP_DROP or not is_whole:
        return "fails" if drop > SHARP_DROP else "open", note
    return _holds(shares[end] <= 1 + RISE_TOLERANCE), note


def drops_steeply(
    shares: Shares, is_whole: bool, ends_from: int
) -> tuple[Finding, str]:
    """Some doubling that ends at `ends_from` clients or more loses more than SHARP_DROP."""
    at, drop = largest_drop(shares, ends_from)
    finding = _holds(drop > SHARP_DROP) if drop > SHARP_DROP or is_whole else "open"
    return finding, f"largest drop per doubling {drop:.2f} (at K = {at})"


def is_near_chance(shares: Shares, is_whole: bool) -> tuple[Finding, str]:
    """At most NEAR_CHANCE of the accuracy above chance is left at the largest K."""
    share = shares[max(shares)]
    return _holds(
        share <= NEAR_CHANCE
    ), f"{share:.2f} of the accuracy above chance is left"


def by_k(rule: Callable[..., tuple[Finding, str]], *options: int) -> Rule:
    """A rule on retained accuracy by K as one on cells; open while K = 1 is missing or learned nothing."""

    def judge_cells(cells: pd.DataFrame) -> Found:
        shares = cells["share"].droplevel(["model", "data"]).dropna().to_dict()
        finding, note = (
            rule(shares, len(shares) == len(cells), *options)
            if len(shares) > 1
            else ("open", "")
        )
        return (
            finding,
            {"retained_by_k": {str(k): round(share, 4) for k, share in shares.items()}},
            note,
        )

    return judge_cells


def struggles(cells: pd.DataFrame) -> Found:
    """Accuracy at the budget of the last cell below STRUGGLING_SHARE of the K = 1 accuracy."""
    cell = cells.iloc[-1]
    if pd.isna(cell.share):
        return "open", {}, ""
    accuracy, baseline = float(cell.accuracy), float(cell.baseline)
    numbers = {
        "accuracy": accuracy,
        "baseline": baseline,
        "share": round(accuracy / baseline, 4),
    }
    note = f"{accuracy:.3f}, {accuracy / baseline:.0%} of K = 1"
    return _holds(accuracy < STRUGGLING_SHARE * baseline), numbers, note


def misses_target(cells: pd.DataFrame) -> Found:
    """The last cell did not reach the target."""
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
    """At least MOSTLY of the cells with K > 1 reach the target; decided early only if none left can help."""
    cells = cells[cells.index.get_level_values("num_clients") > 1]
    settled = cells["reached"][cells["learned"]].dropna()
    total, reached, missed = (
        len(cells),
        int((settled == 1).sum()),
        int((settled == 0).sum()),
    )
    is_lost = (total - missed) / total < MOSTLY
    finding: Finding = (
        "fails" if is_lost else "holds" if len(settled) == total else "open"
    )
    note = f"{reached} of {total} cells reached the target, {missed} did not"
    return finding, {"reached": reached, "missed": missed, "cells": total}, note


def rounds_at_chance(curve: Sequence[float], chance: float) -> int:
    """Rounds after the initial model before the curve first leaves chance; its whole length if it never does.

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
    """At chance for LONG_PLATEAU of the budget or longer, and above it later."""
    return LONG_PLATEAU * budget <= rounds_at_chance(curve, chance) < len(curve) - 1


def never_moves(curve: Sequence[float], chance: float, budget: float) -> bool:
    """At chance from the first round to the last, the budget included."""
    return rounds_at_chance(curve, chance) == len(curve) - 1 >= budget


def some_curve(rule: Callable[[Sequence[float], float, float], bool]) -> Rule:
    """Some curve is as the rule says. One is enough; only all of them can show that it is not there."""

    def judge_cells(cells: pd.DataFrame) -> Found:
        known = cells.dropna(subset=["curves", "chance", "budget"]).droplevel(
            ["model", "data"]
        )
        waited, seen = {}, []
        for k, seeds, chance, budget in known[
            ["curves", "chance", "budget"]
        ].itertuples():
            waited[k] = [rounds_at_chance(curve, chance) for curve in seeds]
            seen += [k] * any(rule(curve, chance, budget) for curve in seeds)
        if not waited:
            return "open", {}, ""
        note = (
            f"seen with K = {joined(seen)}"
            if seen
            else f"not seen with K = {joined(waited)}"
        )
        finding = _holds(bool(seen)) if seen or len(known) == len(cells) else "open"
        return finding, {"rounds_at_chance_by_k": waited, "seen_with_k": seen}, note

    return judge_cells


def steepest_on_imdb(cells: pd.DataFrame) -> Found:
    """IMDB's mean loss of retained accuracy over K > 1 exceeds every other by more than STEEPER_MARGIN."""
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
    told = ", ".join(
        f"{display_name(data)} {loss:.2f}" for data, loss in losses.items()
    )
    is_steepest = losses["imdb"] > losses.drop("imdb").max() + STEEPER_MARGIN
    return _holds(is_steepest), numbers, f"mean loss over K > 1: {told}"


def _holds(condition: bool) -> Finding:
    return "holds" if condition else "fails"


@dataclass(frozen=True)
class Part:
    """One checkable piece of a claim: a rule on some cells, all of which it needs."""

    title: str
    model: str
    data_sets: Sequence[str]
    counts: Sequence[int]
    rule: Rule

    @property
    def name(self) -> str:
        """`steep drop, DistilBERT on IMDB`, or over several data sets `BERT mostly reaches the target`."""
        model, data = display_name(self.model), display_name(self.data_sets[0])
        return (
            f"{model} {self.title}".strip()
            if len(self.data_sets) > 1
            else f"{self.title}, {model} on {data}".removeprefix(", ")
        )

    @property
    def needs(self) -> list[Key]:
        """Its cells."""
        return list(product([self.model], self.data_sets, self.counts))


@dataclass(frozen=True)
class Criterion:
    """How one claim is judged."""

    claim: str
    have: str
    """Column of the table that tells which cells are there for this claim."""
    thresholds: tuple[str, ...]
    """Names above that decide it."""
    parts: list[Part]


CLAIMS = (
    Criterion(
        "BERT and ALBERT decline gradually with K, no sharp drop up to 32.",
        "accuracy",
        ("SHARP_DROP", "RISE_TOLERANCE", "LEARNED_MARGIN"),
        [
            Part("", model, [data], PAPER_CLIENTS, by_k(declines_gradually))
            for model, data in product(("bert", "albert"), PAPER_DATA)
        ],
    ),
    Criterion(
        "DistilBERT drops steeply past 4 clients: near chance on IMDB and Yelp-F; struggles at 16 on "
        "Yelp-F and AG News, at 4 on IMDB.",
        "accuracy",
        ("SHARP_DROP", "NEAR_CHANCE", "STRUGGLING_SHARE", "LEARNED_MARGIN"),
        [
            *(
                Part("steep drop", _DISTIL, [d], PAPER_CLIENTS, by_k(drops_steeply, k))
                for d, k in STEEP_FROM
            ),
            *(
                Part(
                    "near chance with K = 32",
                    _DISTIL,
                    [d],
                    (1, 32),
                    by_k(is_near_chance),
                )
                for d in NEAR_CHANCE_ON
            ),
            *(
                Part(f"struggles with K = {k}", _DISTIL, [d], (1, k), struggles)
                for d, k in STRUGGLES_AT
            ),
        ],
    ),
    Criterion(
        "BERT and ALBERT mostly reach 90 % of the baseline within the second threshold until K = 32; "
        "DistilBERT fails at 16 (Yelp-F) and at 4 (IMDB).",
        "settled",
        ("MOSTLY", "LEARNED_MARGIN"),
        [
            Part(
                "mostly reaches the target",
                "bert",
                PAPER_DATA,
                PAPER_CLIENTS,
                mostly_reached,
            ),
            Part(
                "mostly reaches the target",
                "albert",
                PAPER_DATA,
                PAPER_CLIENTS,
                mostly_reached,
            ),
            *(
                Part(f"target missed with K = {k}", _DISTIL, [d], (1, k), misses_target)
                for d, k in MISSES_AT
            ),
        ],
    ),
    Criterion(
        "Curves can sit on a plateau, sometimes at chance, for many rounds before they move (DistilBERT on "
        "AG News) or for the whole run (IMDB).",
        "curves",
        ("AT_CHANCE_MARGIN", "LONG_PLATEAU"),
        [
            Part(
                "waits at chance, then moves",
                _DISTIL,
                ["ag_news"],
                LARGE_CLIENTS,
                some_curve(waits_then_moves),
            ),
            Part(
                "stays at chance",
                _DISTIL,
                ["imdb"],
                LARGE_CLIENTS,
                some_curve(never_moves),
            ),
        ],
    ),
    Criterion(
        "The decline is steepest for IMDB.",
        "accuracy",
        ("STEEPER_MARGIN", "LEARNED_MARGIN"),
        [
            Part("", model, PAPER_DATA, PAPER_CLIENTS, steepest_on_imdb)
            for model in PAPER_MODELS
        ],
    ),
)


def findings(sweep: SweepData) -> Findings:
    """The page of a sweep with the claims, each part by part."""
    claims, columns = judge(sweep), ["Part", "Finding", "Numbers"]
    words = {"holds": "✓ holds", "fails": "✗ does not hold", "open": "? not tested"}
    parts = {
        claim.id: pd.DataFrame(
            [
                (
                    part["part"],
                    words[part["finding"]],
                    part.get("note") or part.get("missing", ""),
                )
                for part in claim.numbers["parts"]
            ],
            columns=columns,
        )
        for claim in claims
    }
    template = TEMPLATES / "claims.j2"
    return Findings(template, "claims.json", claims, facts={"parts": parts})


def judge(sweep: SweepData) -> list[Claim]:
    """A verdict for each claim, in the order of the paper.

    Runs that leave the paper's protocol are measured all the same, but confirm and refute nothing.
    """
    table, differences = gather(sweep), _differences(sweep)
    told = table, len(sweep.seeds), differences
    return [
        _judge(number, criterion, *told)
        for number, criterion in enumerate(CLAIMS, start=1)
    ]


def _judge(
    number: int,
    criterion: Criterion,
    table: pd.DataFrame,
    num_seeds: int,
    differences: list[str],
) -> Claim:
    have = set(table.index[table[criterion.have].notna()])
    dull = _dull_baselines(table) if "LEARNED_MARGIN" in criterion.thresholds else {}
    entries: list[dict[str, Any]] = []
    needed: list[Key] = []
    reasons: dict[str, None] = {}
    for part in criterion.parts:
        finding, numbers, note = part.rule(table.loc[part.needs])
        entries.append(
            {"part": part.name, "finding": finding, **numbers}
            | ({"note": note} if note else {})
        )
        if finding == "open":
            why = "; ".join(
                dull[part.model, data]
                for data in part.data_sets
                if (part.model, data) in dull
            )
            entries[-1]["missing"] = "; ".join(
                filter(None, [why, describe_missing(part.needs, have)])
            )
            needed, reasons = (
                needed + part.needs,
                reasons | ({why: None} if why else {}),
            )
    findings = [entry["finding"] for entry in entries]
    failing = [
        f"{entry['part']} ({entry['note']})"
        for entry in entries
        if entry["finding"] == "fails"
    ]
    missing, is_tested = describe_missing(needed, have), set(findings) != {"open"}
    sentences = {
        f"No verdict, because the runs leave the paper's protocol: {'; '.join(differences)}. "
        "Under their own settings:": differences and is_tested,
        f"Does not hold: {'; '.join(failing)}.": failing,
        f"{findings.count('holds')} of {len(findings)} parts hold.": is_tested,
        f"Finished runs that are missing: {missing}.": missing,
        f"Cannot be measured: {'; '.join(reasons)}.": reasons,
    }
    explanation = " ".join(
        sentence for sentence, is_said in sentences.items() if is_said
    )
    numbers = {
        "thresholds": {name.lower(): globals()[name] for name in criterion.thresholds},
        "num_seeds": num_seeds,
        "parts": entries,
        "differences_from_paper": differences,
    }
    verdict = "not_tested" if differences else combine(findings)
    return Claim(number, criterion.claim, verdict, numbers, explanation)


def combine(findings: Collection[Finding]) -> Verdict:
    """Contradicted if any part fails; supported if every part is tested and holds; else not tested."""
    if "fails" in findings:
        return "contradicted"
    return "supported" if set(findings) == {"holds"} else "not_tested"


def _dull_baselines(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """By model and data set, words for a K = 1 run that learned nothing above chance."""
    baselines = (
        table.xs(1, level="num_clients")
        .query("not learned")
        .dropna(subset=["baseline", "chance"])
    )
    return {
        (
            model,
            data,
        ): f"{display_name(model)} on {display_name(data)} with K = 1 did not learn "
        f"({baseline:.3f} against chance {chance:.3f})"
        for (model, data), baseline, chance in baselines[
            ["baseline", "chance"]
        ].itertuples()
    }


def describe_missing(needed: Iterable[Key], have: Collection[Key]) -> str:
    """The cells that are needed and not there, in words; empty when none is missing."""
    wanted = dict.fromkeys(needed)
    rows: list[tuple[Any, ...]] = [key for key in wanted if key not in have]
    num_missing = len(rows)
    # One row for all K of a model and data set; then for data sets that miss the same K; then for models.
    for column, name in ((2, sorted), (1, _names), (0, _names)):
        groups: dict[tuple[Any, ...], list[Any]] = {}
        for row in rows:
            groups.setdefault(row[:column] + row[column + 1 :], []).append(row[column])
        rows = [
            (*rest[:column], joined(name(several)), *rest[column:])
            for rest, several in groups.items()
        ]
    text = "; ".join(
        f"{models} on {data} with K = {counts}" for models, data, counts in rows
    )
    return f"{text} (none of them is here)" if 0 < num_missing == len(wanted) else text


def _names(labels: Iterable[str]) -> list[str]:
    return list(map(display_name, labels))


def _differences(sweep: SweepData) -> list[str]:
    """Where the runs leave the paper's protocol, each said once."""
    found = []
    if sweep.target_fraction != DEFAULT_TARGET_FRACTION:
        found.append(
            f"target {sweep.target_fraction:g} of the baseline (paper: {DEFAULT_TARGET_FRACTION:g})"
        )
    cells = sweep.cells[
        sweep.cells["model"].isin(PAPER_MODELS) & sweep.cells["data"].isin(PAPER_DATA)
    ]
    for cell in cells[cells["status"] != "pending"].itertuples():
        if cell.run is None or cell.run.settings is None:
            found.append("some cells have no readable settings.json")
            continue
        ours, theirs = cell.run.settings.flat(), _paper_settings(cell.data)
        for key in (key for key in PAPER_KEYS if ours[key] != theirs[key]):
            name = (
                f"{cell.data} {key}"
                if key.endswith("_rounds")
                else key.removesuffix(".name")
            )
            found.append(f"{name} {_plain(ours[key])} (paper: {_plain(theirs[key])})")
    return list(dict.fromkeys(found))


@cache
def _paper_settings(data: str) -> dict[str, Any]:
    return compose(["protocol=paper", "model=bert", f"data={data}"]).settings.flat()


def _plain(value: object) -> str:
    return "all" if value is None else str(value)
