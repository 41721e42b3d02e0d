"""The study of blending units: does a head with a learned activation gain when sites average it?"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from studies.pairs import (
    StudyAnswer,
    accuracy_axes,
    interval,
    learning_curves,
    mean_by_round,
    pair,
)
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

MARGIN = 0.05
"""Smallest difference of mean accuracy over the rounds that counts as a difference."""
KEY = "model.activation"
KEYS = (KEY, "model.abu_normalisation", "model.abu_where")
"""Settings in which the two runs of a pair may differ."""


def blended_pairs(curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return, by arm with blends, its runs (`_other`) joined with those of the model's own
    activation."""
    is_blended = curves["settings"].map(lambda flat: flat[KEY] != "own").astype(bool)
    own = curves[~is_blended]
    blended = curves[is_blended]
    return {
        str(arm): pair(own, runs, KEYS)
        for arm, runs in blended.groupby("arm", sort=False)
    }


def judge(sweep: SweepData) -> list[StudyAnswer]:
    """Return a verdict for each arm with blends, in the sweep's order."""
    return [
        _judge(arm, pairs)
        for arm, pairs in blended_pairs(learning_curves(sweep)).items()
    ]


def _judge(arm: str, pairs: pd.DataFrame) -> StudyAnswer:
    """Judge an arm: it helps or harms if the gain over K > 1 is MARGIN or more and its interval
    excludes 0."""
    several = pairs[pairs["num_clients"] > 1]
    by_seed = [
        fmean(group["difference"])
        for _, group in several.groupby(several["settings_base"].map(_seed))
    ]
    by_k = {
        str(k): _gain(list(group["difference"]))
        for k, group in pairs.groupby("num_clients")
    }
    overall = _gain(by_seed) if by_seed else None
    question = f"Does {arm} gain over the model's own activation?"
    numbers = {"margin": MARGIN, "gain": overall, "by_k": by_k}
    if overall is None:
        return StudyAnswer(
            arm,
            question,
            "not tested",
            numbers,
            "No two runs with K > 1 differ in this alone.",
        )
    low, high = overall["interval"] or (None, None)
    verdict = "no clear difference"
    if low is None or high is None:
        verdict = "one seed, no verdict"
    elif low > 0 and overall["mean"] >= MARGIN:
        verdict = "yes"
    elif high < 0 and overall["mean"] <= -MARGIN:
        verdict = "no, it harms"
    by_k_words = ", ".join(f"K = {k}: {_words(gain)}" for k, gain in by_k.items())
    explanation = (
        f"Gain in mean accuracy over the rounds, K > 1, {len(by_seed)} seeds: "
        f"{_words(overall)} ({by_k_words})."
    )
    return StudyAnswer(arm, question, verdict, numbers, explanation)


def _seed(flat: dict[str, Any]) -> int:
    return int(flat["seed"])


def _gain(differences: list[float]) -> dict[str, Any]:
    return {
        "mean": fmean(differences),
        "interval": interval(differences),
        "pairs": len(differences),
    }


def _words(gain: dict[str, Any]) -> str:
    text = f"{gain['mean']:+.3f}"
    if gain["interval"] is not None:
        low, high = gain["interval"]
        text += f" [{low:+.3f}, {high:+.3f}]"
    return text


@styled
def draw_curves(curves: pd.DataFrame) -> Drawing:
    """Draw accuracy by round: a line for each arm (mean; thin lines are runs), a panel for each
    K."""
    arms = list(curves["arm"].unique())
    groups = list(curves.groupby("num_clients"))
    figure, panels = panel_row([f"K = {k}" for k, _ in groups] or [""])
    for axes, (_, group) in zip(panels, groups, strict=False):
        for arm, runs in group.groupby("arm", sort=False):
            line = line_style(arms.index(arm))
            for accuracies in runs["accuracies"]:
                axes.plot(accuracies, color=line["color"], linewidth=0.7, alpha=0.4)
            means = mean_by_round(runs["accuracies"])
            axes.plot(means, **line | {"markevery": max(1, len(means) // 8)})
        accuracy_axes(axes, group["chance"].iloc[0], "communication round")
    if not groups:
        draw_nothing_yet(panels[0])
    figures.line_legend(figure, arms)
    alt = f": {joined(arms)}; one panel a K ({joined(k for k, _ in groups)})."
    return figures.finish(
        figure, "study_blending", "Test accuracy against communication round", alt
    )


def findings(sweep: SweepData) -> Findings:
    """Return the page of the study: verdicts, curves, and every run."""
    curves = learning_curves(sweep)
    answers = [_judge(arm, pairs) for arm, pairs in blended_pairs(curves).items()]
    facts = {
        "cell_table": sweep.cells.join(curves[["mean"]]),
        "verdicts": pd.DataFrame(
            [(a.question, a.verdict) for a in answers], columns=["Question", "Verdict"]
        ),
        "margin": MARGIN,
    }
    template = Path(__file__).parent / "templates" / "blending.j2"
    return Findings(template, "study.json", answers, [draw_curves(curves)], facts)
