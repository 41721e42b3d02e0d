"""The paper's five claims, judged from a sweep: each has parts that hold, fail or stay open."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal

import pandas as pd

from wardround.server.compose import compose
from wardround.server.report import claim_rules
from wardround.server.report.claim_rules import (
    PAPER_CLIENTS,
    PAPER_DATA,
    PAPER_MODELS,
    Finding,
    Key,
    Rule,
    by_k,
    declines_gradually,
    drops_steeply,
    gather,
    is_near_chance,
    misses_target,
    mostly_reached,
    never_moves,
    some_curve,
    steepest_on_imdb,
    struggles,
    waits_then_moves,
)
from wardround.server.report.findings import TEMPLATES, Findings
from wardround.server.report.names import (
    display_name,
    joined,
)
from wardround.server.report.sweep import (
    DEFAULT_TARGET_FRACTION,
    SweepData,
)

Verdict = Literal["supported", "contradicted", "not_tested"]
# The settings on which the paper's text and its authors' code agree (section 3.4). Those in which
# the two
# differ (head, mask, shuffling, last batch, weighting, columns) are free: both are "the paper".
PAPER_KEYS = (
    "train.local_epochs",
    "train.batch_size",
    "train.learning_rate",
    "train.max_length",
    "train.optimizer",
    "train.weight_decay",
    "train.schedule",
    "train.max_grad_norm",
    "partition.name",
    "data.train_examples",
    "data.test_examples",
    "data.budget_rounds",
    "data.second_threshold_rounds",
)

LARGE_CLIENTS = (8, 16, 32)
"""K "when the number of clients is high" (section 4.3): above the 4 of section 4.1."""
STEEP_FROM = (("imdb", 4), ("yelp_full", 8), ("ag_news", 8))
"""Data set, and the smallest K at which a drop of DistilBERT may end.

It is above the 4 of section 4.1, except for IMDB.
"""
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


@dataclass(frozen=True)
class Part:
    """A part of a claim that can be checked: a rule and all cells that it needs."""

    title: str
    model: str
    data_sets: Sequence[str]
    counts: Sequence[int]
    rule: Rule

    @property
    def name(self) -> str:
        """`steep drop, DistilBERT on IMDB`, or over several data sets `BERT mostly reaches the
        target`."""
        model = display_name(self.model)
        if len(self.data_sets) > 1:
            return f"{model} {self.title}".strip()
        name = f"{model} on {display_name(self.data_sets[0])}"
        return f"{self.title}, {name}" if self.title else name

    @property
    def needs(self) -> list[Key]:
        """The cells that it needs."""
        return list(product([self.model], self.data_sets, self.counts))


@dataclass(frozen=True)
class Criterion:
    """A claim with the parts by which it is judged."""

    claim: str
    have: str
    """Column of the table that is not NaN if a cell is there for this claim."""
    thresholds: tuple[str, ...]
    """Names of the thresholds (claim_rules) that decide it."""
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
        "DistilBERT drops steeply past 4 clients: near chance on IMDB and Yelp-F; struggles at 16 "
        "on "
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
        "BERT and ALBERT mostly reach 90 % of the baseline within the second threshold until K = "
        "32; "
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
        "Curves can sit on a plateau, sometimes at chance, for many rounds before they move "
        "(DistilBERT on "
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
    """Return the page of a sweep with the claims and their parts."""
    claims = judge(sweep)
    words = {"holds": "✓ holds", "fails": "✗ does not hold", "open": "? not tested"}
    parts = {}
    for claim in claims:
        rows = [
            (
                part["part"],
                words[part["finding"]],
                part.get("note") or part.get("missing", ""),
            )
            for part in claim.numbers["parts"]
        ]
        parts[claim.id] = pd.DataFrame(rows, columns=["Part", "Finding", "Numbers"])
    template = TEMPLATES / "claims.j2"
    return Findings(template, "claims.json", claims, facts={"parts": parts})


def judge(sweep: SweepData) -> list[Claim]:
    """Return a verdict for each claim, in the order of the paper.

    Runs with other settings than the paper's are measured too, but they confirm and refute nothing.
    """
    table = gather(sweep)
    num_seeds = len(sweep.seeds)
    differences = _differences(sweep)
    return [
        _judge(number, criterion, table, num_seeds, differences)
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
    unlearned: dict[tuple[str, str], str] = {}
    if "LEARNED_MARGIN" in criterion.thresholds:
        unlearned = _unlearned_baselines(table)
    entries: list[dict[str, Any]] = []
    needed: list[Key] = []
    reasons: list[str] = []
    for part in criterion.parts:
        finding, numbers, note = part.rule(table.loc[part.needs])
        entry = {"part": part.name, "finding": finding, **numbers}
        if note:
            entry["note"] = note
        if finding == "open":
            pairs = [(part.model, data) for data in part.data_sets]
            reason = "; ".join(unlearned[pair] for pair in pairs if pair in unlearned)
            missing = describe_missing(part.needs, have)
            entry["missing"] = "; ".join(filter(None, [reason, missing]))
            needed += part.needs
            if reason:
                reasons.append(reason)
        entries.append(entry)
    findings = [entry["finding"] for entry in entries]
    numbers = {
        "thresholds": {
            name.lower(): getattr(claim_rules, name) for name in criterion.thresholds
        },
        "num_seeds": num_seeds,
        "parts": entries,
        "differences_from_paper": differences,
    }
    verdict = "not_tested" if differences else combine(findings)
    missing = describe_missing(needed, have)
    explanation = _explain(entries, differences, missing, reasons)
    return Claim(number, criterion.claim, verdict, numbers, explanation)


def _explain(
    entries: Sequence[dict[str, Any]],
    differences: Sequence[str],
    missing: str,
    reasons: Sequence[str],
) -> str:
    """Return the explanation of a verdict, for people."""
    findings = [entry["finding"] for entry in entries]
    is_tested = set(findings) != {"open"}
    failing = [
        f"{entry['part']} ({entry['note']})"
        for entry in entries
        if entry["finding"] == "fails"
    ]
    sentences = []
    if differences and is_tested:
        sentences.append(
            "No verdict, because the runs leave the paper's protocol: "
            f"{'; '.join(differences)}. Under their own settings:"
        )
    if failing:
        sentences.append(f"Does not hold: {'; '.join(failing)}.")
    if is_tested:
        sentences.append(f"{findings.count('holds')} of {len(findings)} parts hold.")
    if missing:
        sentences.append(f"Finished runs that are missing: {missing}.")
    if reasons:
        sentences.append(f"Cannot be measured: {'; '.join(dict.fromkeys(reasons))}.")
    return " ".join(sentences)


def combine(findings: Collection[Finding]) -> Verdict:
    """Return the verdict: contradicted if a part fails, supported if all hold, else not tested."""
    if "fails" in findings:
        return "contradicted"
    return "supported" if set(findings) == {"holds"} else "not_tested"


def _unlearned_baselines(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Describe each K = 1 run that learned nothing above chance, by model and data set."""
    baselines = (
        table.xs(1, level="num_clients")
        .query("not learned")
        .dropna(subset=["baseline", "chance"])
    )
    found = {}
    for (model, data), baseline, chance in baselines[
        ["baseline", "chance"]
    ].itertuples():
        found[model, data] = (
            f"{display_name(model)} on {display_name(data)} with K = 1 did not learn "
            f"({baseline:.3f} against chance {chance:.3f})"
        )
    return found


def describe_missing(needed: Iterable[Key], have: Collection[Key]) -> str:
    """Name the needed cells that are missing, in words; empty if none is missing."""
    wanted = dict.fromkeys(needed)
    rows: list[tuple[Any, ...]] = [key for key in wanted if key not in have]
    num_missing = len(rows)
    # One row for all K of a model and data set; then for data sets that miss the same K; then for
    # models.
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
    if 0 < num_missing == len(wanted):
        text += " (none of them is here)"
    return text


def _names(labels: Iterable[str]) -> list[str]:
    return list(map(display_name, labels))


def _differences(sweep: SweepData) -> list[str]:
    """Name the differences between the runs' settings and the paper's, each once."""
    found = []
    target = sweep.target_fraction
    if target != DEFAULT_TARGET_FRACTION:
        found.append(
            f"target {target:g} of the baseline (paper: {DEFAULT_TARGET_FRACTION:g})"
        )
    of_paper = sweep.cells["model"].isin(PAPER_MODELS)
    of_paper &= sweep.cells["data"].isin(PAPER_DATA)
    cells = sweep.cells[of_paper & (sweep.cells["status"] != "pending")]
    for cell in cells.itertuples():
        if cell.run is None or cell.run.settings is None:
            found.append("some cells have no readable settings.json")
            continue
        ours = cell.run.settings.flat()
        papers = _paper_settings(cell.data)
        for key in PAPER_KEYS:
            if ours[key] == papers[key]:
                continue
            name = key.removesuffix(".name")
            if key.endswith("_rounds"):
                name = f"{cell.data} {key}"
            found.append(f"{name} {_plain(ours[key])} (paper: {_plain(papers[key])})")
    return list(dict.fromkeys(found))


@cache
def _paper_settings(data: str) -> dict[str, Any]:
    return compose(["protocol=paper", "model=bert", f"data={data}"]).settings.flat()


def _plain(value: object) -> str:
    return "all" if value is None else str(value)
