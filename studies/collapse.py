"""The study of the collapse, on runs that go on until a target: who is slow, who is stuck, and why."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isinf, log2, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.ticker import MaxNLocator

from studies.pairs import NEUTRAL, Answer, interval, learning_curves, pair
from wardround.server.report import figures
from wardround.server.report.figures import (
    Drawing,
    draw_nothing_yet,
    line_style,
    panel_row,
    styled,
)
from wardround.server.report.findings import Findings
from wardround.server.report.names import joined
from wardround.server.report.sweep import SweepData

LEAST_FACTOR = 1.25
"""By which two sides' rounds to the target have to differ, to differ at all."""
HEAD, INIT, MODEL, LABEL = "model.head", "train.head_init", "model.name", "model.label"
_OF_MODEL = {MODEL, LABEL, "model.source"}
REMEDIES = {**NEUTRAL, INIT: "per_site"}
"""What a remedy changes, each at the value of the run that is to be cured."""


class Side(NamedTuple):
    """Settings that runs on one side of a comparison have."""

    name: str
    has: Mapping[str, object]

    def of(self, curves: pd.DataFrame) -> pd.DataFrame:
        """The runs that have them."""
        kept = [
            all(flat[key] == has for key, has in self.has.items())
            for flat in curves["settings"]
        ]
        return curves.loc[kept]


class Question(NamedTuple):
    """Does `other` need more rounds than `base`, in runs that differ in the keys alone that the two name?"""

    text: str
    base: Side
    other: Side


_DISTIL = {HEAD: "distilbert"}
QUESTIONS = {
    "head": Question(
        "Is it the head? DistilBERT's against the encoder's own, whose pooler is not new",
        Side("the encoder's own head", {HEAD: "own"}),
        Side("DistilBERT's head", _DISTIL),
    ),
    "sites_own": Question(
        "Is it one head per site, under the encoder's own head?",
        Side("one shared head", {HEAD: "own", INIT: "shared"}),
        Side("a head per site", {HEAD: "own", INIT: "per_site"}),
    ),
    "sites_distil": Question(
        "Is it one head per site, under DistilBERT's head?",
        Side("one shared head", {**_DISTIL, INIT: "shared"}),
        Side("a head per site", {**_DISTIL, INIT: "per_site"}),
    ),
    "length": Question(
        "Is a head's length enough? A shared head divided by √K against one that is not",
        Side("one shared head", {**_DISTIL, INIT: "shared"}),
        Side("one shared head over √K", {**_DISTIL, INIT: "shared_shrunk"}),
    ),
    "rest": Question(
        "Does a head per site cost more than its length? Against a shared head divided by √K",
        Side("one shared head over √K", {**_DISTIL, INIT: "shared_shrunk"}),
        Side("a head per site", {**_DISTIL, INIT: "per_site"}),
    ),
    "learned": Question(
        "Does what a pooler has learned help? Its numbers in another order against it",
        Side("a trained pooler", {HEAD: "own", LABEL: "trained"}),
        Side("its numbers in another order", {HEAD: "own", LABEL: "shuffled"}),
    ),
    "trained": Question(
        "Is DistilBERT's head worse than a trained pooler?",
        Side("a trained pooler", {HEAD: "own", LABEL: "trained"}),
        Side("DistilBERT's head", _DISTIL),
    ),
    "learned_bert": Question(
        "Does what BERT's pooler has learned help? Its numbers in another order against it",
        Side("BERT's pooler", {HEAD: "own", LABEL: "bert"}),
        Side("its numbers in another order", {HEAD: "own", LABEL: "shuffled"}),
    ),
    "distilbert": Question(
        "Is DistilBERT slower than BERT, each under its own head?",
        Side("BERT", {HEAD: "own", LABEL: "bert"}),
        Side("DistilBERT", {HEAD: "own", LABEL: "distilbert"}),
    ),
}


def reaching_curves(sweep: SweepData) -> pd.DataFrame:
    """`learning_curves` of the runs that reached their target or are over, and what that took.

    More columns: limit (rounds there are at most), reached (the first round at the target; inf: none),
    steps_to (optimiser steps of a client by then; inf: none).
    """
    curves = learning_curves(sweep)
    runs = [sweep.cells.loc[cell, "run"].settings for cell in curves.index]
    curves["limit"] = [settings.num_rounds for settings in runs]
    targets = [settings.evaluation.target_accuracy or inf for settings in runs]
    curves["reached"] = [
        next(
            (r for r, value in enumerate(accuracies) if r > 0 and value >= target), inf
        )
        for accuracies, target in zip(curves["accuracies"], targets, strict=True)
    ]
    curves["steps_to"] = [
        inf if isinf(reached) else steps[int(reached)]
        for steps, reached in zip(curves["steps"], curves["reached"], strict=True)
    ]
    is_over = (curves["reached"] < inf) | (curves["last"] >= curves["limit"])
    return curves[is_over]


def compare(curves: pd.DataFrame, question: Question) -> pd.DataFrame:
    """Pairs for a question, of runs without a remedy: those of `pair`, and their `factor` (log2)."""
    plain = curves[curves["remedy"] == ""]
    keys = {*question.base.has, *question.other.has}
    keys |= _OF_MODEL if LABEL in keys else set()
    return with_factors(pair(question.base.of(plain), question.other.of(plain), keys))


def with_factors(pairs: pd.DataFrame) -> pd.DataFrame:
    """With `factor`: log2 of the rounds of `other` over those of `base`.

    A run that never got there counts as one round more than there are: the factor is a bound then, and 0
    where neither did.
    """
    rounds = [
        pairs[f"reached_{side}"].where(
            pairs[f"reached_{side}"] < inf, pairs[f"limit_{side}"] + 1
        )
        for side in ("base", "other")
    ]
    ratios = [log2(other / base) for base, other in zip(*rounds, strict=True)]
    return pairs.assign(
        factor=ratios, seed=[flat["seed"] for flat in pairs["settings_base"]]
    )


def _that_all_seeds_have(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of arms at a K that no seed lacks, where a grid is not whole: else seeds would differ in what
    they are a mean over. All of them where there is no such."""
    kinds = pairs.groupby(["num_clients", "arm_base", "arm_other"])["seed"]
    whole = pairs[kinds.transform("nunique") == pairs["seed"].nunique()]
    return pairs if whole.empty else whole


def _told(pairs: pd.DataFrame) -> dict[str, Any]:
    """The mean factor over seeds, its interval, and who never got there."""
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


def _words(told: dict[str, Any]) -> str:
    bounds = (
        ""
        if told["interval"] is None
        else " [{:.2f}, {:.2f}]".format(*told["interval"])
    )
    return f"× {told['factor']:.2f}{bounds}"


def verdict_of(told: dict[str, Any]) -> str:
    """`more`, `fewer`, `no clear difference`, or `one seed, no verdict`."""
    if told["interval"] is None:
        return "one seed, no verdict"
    low, high = told["interval"]
    if low > 1 and told["factor"] >= LEAST_FACTOR:
        return "more"
    return (
        "fewer"
        if high < 1 and told["factor"] <= 1 / LEAST_FACTOR
        else "no clear difference"
    )


def judge(sweep: SweepData) -> list[Answer]:
    """A verdict for each question, then on the clock, then for each remedy."""
    curves = reaching_curves(sweep)
    answers = [
        _judge(id, question, compare(curves, question))
        for id, question in QUESTIONS.items()
    ]
    return [*answers, _judge_clock(curves), _judge_remedies(remedy_pairs(curves))]


def _judge(id: str, question: Question, pairs: pd.DataFrame) -> Answer:
    several = pairs[pairs["num_clients"] > 1]
    if several.empty:
        return Answer(
            id,
            question.text,
            "not tested",
            {},
            "No two runs with K > 1 differ in this alone.",
        )
    told = _told(_that_all_seeds_have(several))
    by_k = {str(k): _told(group) for k, group in several.groupby("num_clients")}
    verdict = {"more": "yes", "fewer": "no, the other way round"}.get(
        found := verdict_of(told), found
    )
    lines = ", ".join(f"K = {k}: {_words(numbers)}" for k, numbers in by_k.items())
    explanation = (
        f"Rounds to the target with {question.other.name} over those with {question.base.name}: "
        f"{_words(told)} over {told['seeds']} seeds ({lines}). "
        f"Never there: {told['never'][1]} of {told['pairs']} against {told['never'][0]}."
    )
    return Answer(
        id,
        question.text,
        verdict,
        {"least_factor": LEAST_FACTOR, **told, "by_k": by_k},
        explanation,
    )


def _judge_clock(curves: pd.DataFrame) -> Answer:
    """Only a clock where the largest K needs no more steps per client than the smallest K > 1."""
    text = "Is it only the number of steps? Steps per client to the target, the largest K against the smallest"
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
            told = {
                "factor": 2 ** fmean(ratios),
                "seeds": len(ratios),
                "never": len(pairs) - len(both),
            }
            by_arm[str(arm)] = told | {
                "interval": None if bounds is None else [2**b for b in bounds]
            }
    if not by_arm:
        return Answer(
            "clock", text, "not tested", {}, "No arm reached the target at two K."
        )
    more = [arm for arm, told in by_arm.items() if verdict_of(told) == "more"]
    verdict = f"no, not for {joined(more)}" if more else "yes, as far as can be told"
    if not more and any(told["interval"] is None for told in by_arm.values()):
        verdict = "no verdict: an arm has one seed only"
    lines = "; ".join(f"{arm}: {_words(told)}" for arm, told in by_arm.items())
    explanation = f"Steps per client at K = {counts[-1]} over those at K = {counts[0]}, where both got there: {lines}."
    return Answer(
        "clock",
        text,
        verdict,
        {"least_factor": LEAST_FACTOR, "by_arm": by_arm},
        explanation,
    )


def remedy_pairs(curves: pd.DataFrame) -> pd.DataFrame:
    """Every remedy (`name`) beside the run of a head per site without it, under DistilBERT's head."""
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


def _judge_remedies(pairs: pd.DataFrame) -> Answer:
    text = "Does a remedy help a head per site under DistilBERT's head?"
    found: dict[str, Any] = {}
    for name, group in pairs[pairs["num_clients"] > 1].groupby("name", sort=False):
        largest = (whole := _that_all_seeds_have(group))["num_clients"].max()
        told = _told(whole[whole["num_clients"] == largest])
        outcome = {"fewer": "helps", "more": "harms"}.get(
            verdict := verdict_of(told), verdict
        )
        found[str(name)] = told | {"outcome": outcome, "num_clients": int(largest)}
    if not found:
        return Answer("remedies", text, "not tested", {}, "No run was given one.")
    helping = [name for name, told in found.items() if told["outcome"] == "helps"]
    verdict = f"yes: {joined(helping)}" if helping else "none that was tried, clearly"
    lines = "; ".join(
        f"{name}: {told['outcome']} ({_words(told)})" for name, told in found.items()
    )
    explanation = f"Rounds to the target over those without, at the largest K that all seeds have: {lines}."
    return Answer(
        "remedies",
        text,
        verdict,
        {"least_factor": LEAST_FACTOR, "remedies": found},
        explanation,
    )


def _untreated(curves: pd.DataFrame) -> pd.DataFrame:
    is_rescaled = (
        curves["settings"]
        .map(lambda flat: flat[INIT] == "per_site_rescaled")
        .astype(bool)
    )
    return curves[(curves["remedy"] == "") & ~is_rescaled]


@styled
def draw_rounds(curves: pd.DataFrame) -> Drawing:
    """Rounds to the target against K, a line an arm without a remedy; a cross is a run that got not there."""
    plain = _untreated(curves)
    counts, arms = (
        sorted(plain["num_clients"].unique().tolist()),
        list(plain["arm"].unique()),
    )
    figure, (axes,) = panel_row(["Rounds to the target"], 7.0, 4.2)
    figures.client_axis(axes, counts)
    limit = int(plain["limit"].max()) if counts else 1
    for index, (_, runs) in enumerate(plain.groupby("arm", sort=False)):
        look = line_style(index)
        aside = runs["num_clients"] * 2 ** (0.06 * (index - (len(arms) - 1) / 2))
        height = runs["reached"].clip(upper=limit + 1)
        never = runs["reached"] == inf
        axes.plot(
            aside[~never],
            height[~never],
            look["marker"],
            color=look["color"],
            alpha=0.5,
            markersize=4,
        )
        axes.plot(
            aside[never],
            height[never],
            "x",
            mec=look["color"],
            markersize=7,
            markeredgewidth=2,
        )
        means = height.groupby(aside).mean()
        axes.plot(
            means.index,
            means,
            color=look["color"],
            linestyle=look["linestyle"],
            linewidth=1.5,
        )
    if counts:
        axes.set_yscale("log", base=2)
        figures.draw_level(axes, limit + 1, f"not within {limit} rounds", above=True)
        axes.set_ylim(0.8, (limit + 1) * 1.5)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        draw_nothing_yet(axes)
    figures.line_legend(figure, arms)
    alt = f" by number of clients ({joined(counts)}), for {joined(arms)}: the numbers are in the verdicts."
    return figures.finish(
        figure, "study_rounds", "Rounds until the target accuracy", alt
    )


WHY = {
    "head_length": "Length of the head",
    "norm_ratio": "Norm of the mean update over the mean norm",
    "cosine": "Cosine of an update to the others'",
}
"""Diagnostics that are drawn by round."""


@styled
def draw_why(sweep: SweepData) -> Drawing:
    """Of each arm without a remedy at the largest K, the mean over its seeds, round by round."""
    plain = _untreated(reaching_curves(sweep))
    arms = list(plain["arm"].unique())
    plain = plain[plain["num_clients"] == plain["num_clients"].max()] if arms else plain
    figure, panels = panel_row(list(WHY.values()), 4.4)
    for index, arm in enumerate(arms):
        runs = [
            sweep.cells.loc[cell, "run"] for cell in plain.index[plain["arm"] == arm]
        ]
        if not runs:
            continue
        for axes, key in zip(panels, WHY, strict=True):
            by_round = [
                [_diagnostic(record, key) for record in run.rounds] for run in runs
            ]
            means = pd.DataFrame(
                [pd.Series(values, dtype=float) for values in by_round]
            ).mean()
            axes.plot(
                means, **line_style(index) | {"markevery": max(1, len(means) // 8)}
            )
    for axes in panels:
        axes.set_xlabel("communication round")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if not arms:
            draw_nothing_yet(axes)
    figures.line_legend(figure, arms)
    k = int(plain["num_clients"].max()) if arms else 0
    if arms:
        figures.draw_level(panels[1], 1 / sqrt(k), "independent noise")
    alt = f" at K = {k}, by round, for {joined(arms)}."
    return figures.finish(
        figure, "study_why", "Length of the head and agreement of the updates", alt
    )


def _diagnostic(record: Any, key: str) -> float | None:
    if key != "cosine":
        value: float | None = getattr(record.diagnostics, key)
        return value
    cosines = [
        client.cosine_to_others
        for client in record.clients
        if client.cosine_to_others is not None
    ]
    return fmean(cosines) if cosines else None


def findings(sweep: SweepData) -> Findings:
    """The page of the study: each question with its verdict, the two figures, every run."""
    curves, answers = reaching_curves(sweep), judge(sweep)
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
    return Findings(
        template, "study.json", answers, [draw_rounds(curves), draw_why(sweep)], facts
    )
