"""The study of the collapse, on runs that continue until a target: slow runs, stuck runs, and
causes."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isinf, log2
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from studies.collapse_figures import draw_rounds, draw_why
from studies.pairs import NEUTRAL, StudyAnswer, interval, learning_curves, pair
from wardround.server.report.findings import Findings
from wardround.server.report.names import joined
from wardround.server.report.sweep import SweepData

LEAST_FACTOR = 1.25
"""Smallest ratio of rounds to the target that counts as a difference."""
HEAD, INIT, MODEL, LABEL = "model.head", "train.head_init", "model.name", "model.label"
_OF_MODEL = {MODEL, LABEL, "model.source"}
REMEDIES = {**NEUTRAL, INIT: "per_site"}
"""Settings that a remedy changes, each with its value in the run without a remedy."""


class Side(NamedTuple):
    """One side of a comparison: runs with certain settings."""

    name: str
    has: Mapping[str, object]

    def of(self, curves: pd.DataFrame) -> pd.DataFrame:
        """Return the runs with these settings."""
        kept = [
            all(flat[key] == has for key, has in self.has.items())
            for flat in curves["settings"]
        ]
        return curves.loc[kept]


class Comparison(NamedTuple):
    """A question: does `other` need more rounds than `base`, if only the settings of the two
    differ?"""

    text: str
    base: Side
    other: Side


_DISTIL = {HEAD: "distilbert"}
QUESTIONS = {
    "head": Comparison(
        "Is it the head? DistilBERT's against the encoder's own, with its pre-trained pooler",
        Side("the encoder's own head", {HEAD: "own"}),
        Side("DistilBERT's head", _DISTIL),
    ),
    "sites_own": Comparison(
        "Is it one head per site, under the encoder's own head?",
        Side("one shared head", {HEAD: "own", INIT: "shared"}),
        Side("a head per site", {HEAD: "own", INIT: "per_site"}),
    ),
    "sites_distil": Comparison(
        "Is it one head per site, under DistilBERT's head?",
        Side("one shared head", {**_DISTIL, INIT: "shared"}),
        Side("a head per site", {**_DISTIL, INIT: "per_site"}),
    ),
    "length": Comparison(
        "Is a head's length enough? A shared head divided by √K against one that is not",
        Side("one shared head", {**_DISTIL, INIT: "shared"}),
        Side("one shared head over √K", {**_DISTIL, INIT: "shared_shrunk"}),
    ),
    "rest": Comparison(
        "Does a head per site cost more than its length? Against a shared head divided by √K",
        Side("one shared head over √K", {**_DISTIL, INIT: "shared_shrunk"}),
        Side("a head per site", {**_DISTIL, INIT: "per_site"}),
    ),
    "learned": Comparison(
        "Does a trained pooler help? The same numbers in another order against it",
        Side("a trained pooler", {HEAD: "own", LABEL: "trained"}),
        Side("the same numbers in another order", {HEAD: "own", LABEL: "shuffled"}),
    ),
    "trained": Comparison(
        "Is DistilBERT's head worse than a trained pooler?",
        Side("a trained pooler", {HEAD: "own", LABEL: "trained"}),
        Side("DistilBERT's head", _DISTIL),
    ),
    "learned_bert": Comparison(
        "Does BERT's trained pooler help? The same numbers in another order against it",
        Side("BERT's pooler", {HEAD: "own", LABEL: "bert"}),
        Side("the same numbers in another order", {HEAD: "own", LABEL: "shuffled"}),
    ),
    "distilbert": Comparison(
        "Is DistilBERT slower than BERT, each under its own head?",
        Side("BERT", {HEAD: "own", LABEL: "bert"}),
        Side("DistilBERT", {HEAD: "own", LABEL: "distilbert"}),
    ),
}


def reaching_curves(sweep: SweepData) -> pd.DataFrame:
    """Return `learning_curves` of the runs that have reached their target or are over.

    More columns: limit (number of rounds), reached (first round at the target; inf: none), steps_to
    (optimiser steps of a client up to then; inf: none).
    """
    curves = learning_curves(sweep)
    runs = [sweep.cells.loc[cell, "run"].settings for cell in curves.index]
    curves["limit"] = [settings.num_rounds for settings in runs]
    targets = [settings.evaluation.target_accuracy or inf for settings in runs]
    curves["reached"] = [
        _first_at(target, accuracies)
        for accuracies, target in zip(curves["accuracies"], targets, strict=True)
    ]
    curves["steps_to"] = [
        inf if isinf(reached) else steps[int(reached)]
        for steps, reached in zip(curves["steps"], curves["reached"], strict=True)
    ]
    is_over = (curves["reached"] < inf) | (curves["last"] >= curves["limit"])
    return curves[is_over]


def _first_at(target: float, accuracies: list[float]) -> float:
    """Return the first trained round with at least this accuracy; inf if there is none."""
    for number, accuracy in enumerate(accuracies):
        if number > 0 and accuracy >= target:
            return number
    return inf


def compare(curves: pd.DataFrame, question: Comparison) -> pd.DataFrame:
    """Return the pairs of a comparison, from runs without a remedy, with their `factor` (log2)."""
    plain = curves[curves["remedy"] == ""]
    keys = {*question.base.has, *question.other.has}
    keys |= _OF_MODEL if LABEL in keys else set()
    return with_factors(pair(question.base.of(plain), question.other.of(plain), keys))


def with_factors(pairs: pd.DataFrame) -> pd.DataFrame:
    """Add `factor`: log2 of the rounds of `other` over those of `base`.

    A run that never reached the target counts as one round more than its limit. Then the factor is
    a bound; it is 0 if neither run reached it.
    """
    rounds = []
    for side in ("base", "other"):
        reached = pairs[f"reached_{side}"]
        rounds.append(reached.where(reached < inf, pairs[f"limit_{side}"] + 1))
    ratios = [log2(other / base) for base, other in zip(*rounds, strict=True)]
    seeds = [flat["seed"] for flat in pairs["settings_base"]]
    return pairs.assign(factor=ratios, seed=seeds)


def _with_all_seeds(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs that all seeds have, so that every seed is a mean over the same cells.

    If there are none, return all pairs.
    """
    kinds = pairs.groupby(["num_clients", "arm_base", "arm_other"])["seed"]
    whole = pairs[kinds.transform("nunique") == pairs["seed"].nunique()]
    return pairs if whole.empty else whole


def _summary(pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the mean factor over seeds, its interval, and the number of runs that never got
    there."""
    by_seed = [fmean(group["factor"]) for _, group in pairs.groupby("seed")]
    bounds = interval(by_seed)
    return {
        "factor": 2 ** fmean(by_seed),
        "interval": None if bounds is None else [2**bound for bound in bounds],
        "seeds": len(by_seed),
        "pairs": len(pairs),
        "never": [
            int((pairs[f"reached_{side}"] == inf).sum()) for side in ("base", "other")
        ],
    }


def _words(summary: dict[str, Any]) -> str:
    text = f"× {summary['factor']:.2f}"
    if summary["interval"] is not None:
        low, high = summary["interval"]
        text += f" [{low:.2f}, {high:.2f}]"
    return text


def verdict_of(summary: dict[str, Any]) -> str:
    """Return `more`, `fewer`, `no clear difference`, or `one seed, no verdict`."""
    if summary["interval"] is None:
        return "one seed, no verdict"
    low, high = summary["interval"]
    if low > 1 and summary["factor"] >= LEAST_FACTOR:
        return "more"
    if high < 1 and summary["factor"] <= 1 / LEAST_FACTOR:
        return "fewer"
    return "no clear difference"


def judge(sweep: SweepData) -> list[StudyAnswer]:
    """Return a verdict for each question, then for the number of steps, then for each remedy."""
    curves = reaching_curves(sweep)
    answers = [
        _judge(id, question, compare(curves, question))
        for id, question in QUESTIONS.items()
    ]
    return [*answers, _judge_clock(curves), _judge_remedies(remedy_pairs(curves))]


def _judge(id: str, question: Comparison, pairs: pd.DataFrame) -> StudyAnswer:
    several = pairs[pairs["num_clients"] > 1]
    if several.empty:
        return StudyAnswer(
            id,
            question.text,
            "not tested",
            {},
            "No two runs with K > 1 differ in this alone.",
        )
    summary = _summary(_with_all_seeds(several))
    by_k = {str(k): _summary(group) for k, group in several.groupby("num_clients")}
    words = {"more": "yes", "fewer": "no, the other way round"}
    found = verdict_of(summary)
    verdict = words.get(found, found)
    lines = ", ".join(f"K = {k}: {_words(numbers)}" for k, numbers in by_k.items())
    explanation = (
        f"Rounds to the target with {question.other.name} over those with {question.base.name}: "
        f"{_words(summary)} over {summary['seeds']} seeds ({lines}). "
        f"Never reached: {summary['never'][1]} of {summary['pairs']} against {summary['never'][0]}."
    )
    return StudyAnswer(
        id,
        question.text,
        verdict,
        {"least_factor": LEAST_FACTOR, **summary, "by_k": by_k},
        explanation,
    )


def _judge_clock(curves: pd.DataFrame) -> StudyAnswer:
    """Judge if only the number of steps matters: the largest K against the smallest K > 1."""
    text = (
        "Is it only the number of steps? Steps per client to the target, the largest K against "
        "the smallest"
    )
    plain = curves[(curves["remedy"] == "") & (curves["num_clients"] > 1)]
    counts = sorted(plain["num_clients"].unique())
    by_arm = {}
    for arm, runs in plain.groupby("arm", sort=False) if len(counts) > 1 else ():
        seeds = runs.assign(seed=[flat["seed"] for flat in runs["settings"]]).pivot(
            index="seed", columns="num_clients", values="steps_to"
        )
        if not {counts[0], counts[-1]} <= set(seeds.columns):
            continue
        pairs = seeds[[counts[0], counts[-1]]].dropna()
        both = pairs[(pairs < inf).all(axis=1)]
        ratios = [log2(high / low) for low, high in both.itertuples(index=False)]
        if ratios:
            bounds = interval(ratios)
            summary = {
                "factor": 2 ** fmean(ratios),
                "seeds": len(ratios),
                "never": len(pairs) - len(both),
            }
            by_arm[str(arm)] = summary | {
                "interval": None if bounds is None else [2**b for b in bounds]
            }
    if not by_arm:
        return StudyAnswer(
            "clock", text, "not tested", {}, "No arm reached the target at two K."
        )
    more = [arm for arm, summary in by_arm.items() if verdict_of(summary) == "more"]
    verdict = f"no, not for {joined(more)}" if more else "yes, as far as can be told"
    if not more and any(summary["interval"] is None for summary in by_arm.values()):
        verdict = "no verdict: an arm has one seed only"
    lines = "; ".join(f"{arm}: {_words(summary)}" for arm, summary in by_arm.items())
    explanation = (
        f"Steps per client at K = {counts[-1]} over those at K = {counts[0]}, if both reached the "
        f"target: {lines}."
    )
    return StudyAnswer(
        "clock",
        text,
        verdict,
        {"least_factor": LEAST_FACTOR, "by_arm": by_arm},
        explanation,
    )


def remedy_pairs(curves: pd.DataFrame) -> pd.DataFrame:
    """Join each run with a remedy (`name`) with the run without it. The head is DistilBERT's, one
    for each site."""
    sick = Side("", {**_DISTIL, INIT: "per_site"}).of(curves[curves["remedy"] == ""])
    distil = Side("", _DISTIL).of(curves)
    heads = distil["settings"].map(lambda flat: flat[INIT])
    is_given = (distil["remedy"] != "") | heads.isin(["shared", "per_site_rescaled"])
    pairs = with_factors(pair(sick, distil[is_given], REMEDIES))
    names = [
        ", ".join(
            f"{key}={flat[key]}" for key, none in REMEDIES.items() if flat[key] != none
        )
        for flat in pairs["settings_other"]
    ]
    return pairs.assign(name=names)


def _judge_remedies(pairs: pd.DataFrame) -> StudyAnswer:
    text = "Does a remedy help a head per site under DistilBERT's head?"
    found: dict[str, Any] = {}
    for name, group in pairs[pairs["num_clients"] > 1].groupby("name", sort=False):
        whole = _with_all_seeds(group)
        largest = whole["num_clients"].max()
        summary = _summary(whole[whole["num_clients"] == largest])
        verdict = verdict_of(summary)
        outcome = {"fewer": "helps", "more": "harms"}.get(verdict, verdict)
        found[str(name)] = summary | {"outcome": outcome, "num_clients": int(largest)}
    if not found:
        return StudyAnswer("remedies", text, "not tested", {}, "No run has a remedy.")
    helping = [name for name, summary in found.items() if summary["outcome"] == "helps"]
    verdict = f"yes: {joined(helping)}" if helping else "none clearly"
    lines = "; ".join(
        f"{name}: {summary['outcome']} ({_words(summary)})"
        for name, summary in found.items()
    )
    explanation = (
        "Rounds to the target over those without, at the largest K that all seeds have: "
        f"{lines}."
    )
    return StudyAnswer(
        "remedies",
        text,
        verdict,
        {"least_factor": LEAST_FACTOR, "remedies": found},
        explanation,
    )


def without_remedy(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the runs without a remedy."""
    is_rescaled = (
        curves["settings"]
        .map(lambda flat: flat[INIT] == "per_site_rescaled")
        .astype(bool)
    )
    return curves[(curves["remedy"] == "") & ~is_rescaled]


def findings(sweep: SweepData) -> Findings:
    """Return the page of the study: verdicts, two figures, and every run."""
    curves = reaching_curves(sweep)
    answers = judge(sweep)
    reached = curves["reached"].map(
        lambda value: f"{value:.0f}" if value < inf else "not"
    )
    facts = {
        "cell_table": sweep.cells.join(
            pd.DataFrame({"reached": reached, "steps_to": curves["steps_to"]})
        ),
        "verdicts": pd.DataFrame(
            [(a.id, a.question, a.verdict) for a in answers],
            columns=["", "Question", "Verdict"],
        ),
        "least_factor": LEAST_FACTOR,
        "unfinished": len(sweep.cells) - len(curves),
    }
    template = Path(__file__).parent / "templates" / "collapse.j2"
    plain = without_remedy(curves)
    drawings = [draw_rounds(plain), draw_why(sweep, plain)]
    return Findings(template, "study.json", answers, drawings, facts)
