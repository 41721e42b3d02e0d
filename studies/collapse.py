"""The study of the collapse: learning curves of a sweep with arms, paired so that one switch differs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, count, product
from math import inf, isinf
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from server.diagnostics.collapse import CHANCE_ERRORS
from server.report import figures
from server.report.figures import Drawing, draw_chance, draw_nothing_yet, line_style, panel_row, styled
from server.report.load import Sweep, display_name, joined
from server.report.render import Findings
from studies.pairs import NEUTRAL, Answer, accuracy_axes, learning_curves, mean_by_round, pair

MARGIN = 0.05
"""Mean accuracy over the rounds by which two sides have to differ to differ at all."""
CLOCK_SHARE = 0.5
"""Share of the gap by rounds to which the gap by steps has to fall for K to be mostly a clock."""
FEWEST_SHARED = 3
"""Step counts that two K must have in common to be compared by steps."""
QUESTIONS = {
    "a": "Is it the head? Does DistilBERT's head stay longer at chance on the same encoder?",
    "b": "Is it heads that every site draws (the authors' code) against one shared head (the paper's text)?",
    "mask": "Is it padding that is attended to (the authors' code)?",
    "c": "Is it only the number of steps? Do the curves of all K fall on one line against steps per client?",
    "d": "Does a remedy work?",
}


class Switch(NamedTuple):
    """A question about one setting: what `other` does to runs that have `base`; both named for the legend."""

    key: str
    base: object
    other: object
    base_name: str
    other_name: str


SWITCHES = {
    "a": Switch("model.head", "own", "distilbert", "the encoder's own head", "DistilBERT's head"),
    "b": Switch("train.head_init", "shared", "per_site", "one shared head", "a head per site"),
    "mask": Switch("train.attention_mask", True, False, "padding hidden", "padding attended to"),
}


def pair_switch(
    bases: pd.DataFrame, curves: pd.DataFrame, key: str, base: object, other: object
) -> pd.DataFrame:
    """Rows of `bases` with the value `base`, beside those without a remedy that have `other` instead."""
    plain = curves[curves["remedy"] == ""]
    is_base, is_other = (
        [flat[key] == value for flat in rows["settings"]] for rows, value in ((bases, base), (plain, other))
    )
    return pair(bases.loc[is_base], plain.loc[is_other], [key])


def pair_remedies(curves: pd.DataFrame) -> pd.DataFrame:
    """Every remedy (column `name`) beside the same run without it.

    Where heads were per site, one shared head is one too: it comes first.
    """
    is_plain = curves["remedy"] == ""
    pairs = pair(curves[is_plain], curves[~is_plain], NEUTRAL).sort_values("cell_other", kind="stable")
    untreated = curves.loc[pairs["cell_base"].unique()]
    shared = pair_switch(untreated, curves, "train.head_init", "per_site", "shared")
    return pd.concat([shared.assign(name="train.head_init=shared"), pairs.assign(name=pairs["remedy_other"])])


class Curve(NamedTuple):
    """Test accuracy after round 0, 1, 2 … and the steps made by then."""

    accuracies: Sequence[float]
    steps: Sequence[int]
    chance: float


def mean_curves(curves: pd.DataFrame) -> dict[str, dict[int, Curve]]:
    """Of each arm without a remedy its mean curve by K, as far as all seeds go; not of arms with one K."""
    plain = curves[curves["remedy"] == ""]
    return {
        arm: {num_clients: _mean_curve(seeds) for num_clients, seeds in rows.groupby("num_clients")}
        for arm, rows in plain.groupby("arm", sort=False)
        if rows["num_clients"].nunique() > 1
    }


def _mean_curve(seeds: pd.DataFrame) -> Curve:
    accuracies = mean_by_round(seeds["accuracies"])
    return Curve(accuracies, seeds["steps"].iloc[0][: len(accuracies)], seeds["chance"].iloc[0])


def judge(sweep: Sweep) -> list[Answer]:
    """A verdict for each question, in their order. The thresholds are ours; each is printed with them."""
    return _judge(*_sorted_by_question(sweep)[1:])


def _sorted_by_question(
    sweep: Sweep,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], dict[str, dict[int, Curve]], pd.DataFrame]:
    """Every curve; then the pairs of each switch, the arms' mean curves, and the pairs of the remedies."""
    curves = learning_curves(sweep)
    switched = {id: pair_switch(curves, curves, *switch[:3]) for id, switch in SWITCHES.items()}
    return curves, switched, mean_curves(curves), pair_remedies(curves)


def _judge(
    switched: dict[str, pd.DataFrame], arms: dict[str, dict[int, Curve]], remedies: pd.DataFrame
) -> list[Answer]:
    found = {id: _judge_switch(SWITCHES[id], pairs) for id, pairs in switched.items()}
    found |= {"c": _judge_clock(arms), "d": _judge_remedies(remedies)}
    return [Answer(id, QUESTIONS[id], *answer) for id, answer in found.items()]


Judged = tuple[str, dict[str, Any], str]
"""Verdict, numbers, explanation."""


def _judge_switch(switch: Switch, pairs: pd.DataFrame) -> Judged:
    """Yes if `other` costs MARGIN of mean accuracy or more over K > 1, and leaves chance later more often."""
    several, by_k = pairs[pairs["num_clients"] > 1], _by_k(pairs)
    change = f"{switch.key}: {switch.base} -> {switch.other}"
    numbers = {"switch": change, "margin": MARGIN, "standard_errors": CHANCE_ERRORS, "by_k": by_k}
    if several.empty:
        return "not tested", numbers, "No two runs differ in this alone."
    difference = fmean(several["difference"])
    later, earlier = (int((several["order"] == sign).sum()) for sign in (1, -1))
    is_worse, is_better = difference <= -MARGIN and later > earlier, difference >= MARGIN and earlier > later
    verdict = "yes" if is_worse else "no, the other way round" if is_better else "no clear difference"
    numbers |= {"difference": difference, "later": later, "earlier": earlier, "pairs": len(several)}
    explanation = (
        f"Pairs of runs with K > 1 that differ in {switch.key} alone: {len(several)}. With "
        f"{switch.other_name} a run leaves chance later than with {switch.base_name} in {later}, earlier in "
        f"{earlier}, in the same round or never in {len(several) - later - earlier}. Its gain in mean "
        f"accuracy over the rounds: {difference:+.3f} ({_gains(by_k)})."
    )
    return verdict, numbers, explanation


def _by_k(pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The numbers of the pairs, for each K."""
    sides = ("base", "other")
    return {
        str(num_clients): {
            "difference": fmean(group["difference"]),
            "left_chance": [
                [None if isinf(left) else int(left) for left in both]
                for both in group[[f"left_{side}" for side in sides]].to_numpy()
            ],
            "arms": group[[f"arm_{side}" for side in sides]].to_numpy().tolist(),
            "rounds": group["rounds"].astype(int).tolist(),
        }
        for num_clients, group in pairs.groupby("num_clients")
    }


def _gains(by_k: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"K = {k}: {numbers['difference']:+.3f}" for k, numbers in by_k.items())


def gaps(low: Curve, high: Curve) -> tuple[float, float] | None:
    """Mean gap in accuracy between two K, by rounds and by steps; None where their steps do not overlap.

    Args:
        low: the curve of fewer clients, so of more steps a round. The other is read at its step counts,
            by linear interpolation.
    """
    num = min(len(low.accuracies), len(high.accuracies))
    by_rounds = np.abs(np.subtract(low.accuracies[1:num], high.accuracies[1:num]))
    shared = [r for r in range(1, len(low.steps)) if low.steps[r] <= high.steps[-1]]
    if len(shared) < FEWEST_SHARED:
        return None
    theirs = np.interp([low.steps[r] for r in shared], high.steps, high.accuracies)
    by_steps = np.abs(np.subtract([low.accuracies[r] for r in shared], theirs))
    return float(by_rounds.mean()), float(by_steps.mean())


def _judge_clock(arms: dict[str, dict[int, Curve]]) -> Judged:
    """Yes if two K are less than MARGIN apart at equal steps; mostly if that halves the gap by rounds."""
    found = {
        f"{arm} K={low}/{high}": gap
        for arm, curves in arms.items()
        for low, high in combinations(curves, 2)
        if (gap := gaps(curves[low], curves[high])) is not None
    }
    numbers: dict[str, Any] = {"margin": MARGIN, "clock_share": CLOCK_SHARE, "gaps": found}
    if not found:
        return "not tested", numbers, f"No two K have {FEWEST_SHARED} step counts in common."
    by_rounds, by_steps = (fmean(values) for values in zip(*found.values(), strict=True))
    verdict = "mostly" if by_steps <= CLOCK_SHARE * by_rounds else "no"
    if min(by_rounds, by_steps) < MARGIN:
        verdict = "nothing to explain" if by_rounds < MARGIN else "yes"
    numbers |= {"gap_by_rounds": by_rounds, "gap_by_steps": by_steps}
    explanation = (
        f"Two K of one arm are {by_rounds:.3f} apart in accuracy at equal rounds and {by_steps:.3f} at equal "
        f"steps per client (mean over {len(found)} pairs of K in {len(arms)} arms, where steps overlap)."
    )
    return verdict, numbers, explanation


def _judge_remedies(pairs: pd.DataFrame) -> Judged:
    """A remedy works where it gains MARGIN of mean accuracy or more at every K tried."""
    found: dict[str, dict[str, Any]] = {}
    for name, group in pairs.groupby("name", sort=False):
        by_k = _by_k(group)
        gains = [numbers["difference"] for numbers in by_k.values()]
        some = "helps at some K" if max(gains) >= MARGIN else "no clear effect"
        outcome = "works" if min(gains) >= MARGIN else "harms" if max(gains) <= -MARGIN else some
        found[name] = {"outcome": outcome, "by_k": by_k}
    if not found:
        return "not tested", {"margin": MARGIN}, "No run was given one."
    working = [name for name, told in found.items() if told["outcome"] == "works"]
    lines = [f"{name}: {told['outcome']} ({_gains(told['by_k'])})" for name, told in found.items()]
    verdict = f"yes: {joined(working)}" if working else "none that was tried"
    text = f"Mean accuracy over the rounds gained: {'; '.join(lines)}."
    return verdict, {"margin": MARGIN, "remedies": found}, text


@styled
def draw_switch(id: str, switch: Switch, pairs: pd.DataFrame) -> Drawing:
    """Rounds at chance and mean accuracy against K, with the switch off and on; dots are single runs."""
    figure, panels = panel_row(["First round above chance", "Mean accuracy over the rounds"], 5.0)
    counts = sorted(pairs["num_clients"].unique().tolist())
    for axes, column in zip(panels, ("left", "mean"), strict=True):
        figures.client_axis(axes, counts)
        for index, side in enumerate(("base", "other") if counts else ()):
            # A run that never left counts as leaving in the round after its last.
            values, aside = (
                pairs[f"{column}_{side}"].clip(upper=pairs[f"last_{side}"] + 1),
                2 ** (0.12 * index - 0.06),
            )
            means, color = values.groupby(pairs["num_clients"]).mean(), line_style(index)["color"]
            axes.plot(pairs["num_clients"] * aside, values, "o", color=color, alpha=0.3, markersize=4)
            axes.plot(means.index * aside, means, **line_style(index))
        if not counts:
            draw_nothing_yet(axes)
    if counts:
        left, right, last = *panels, int(pairs["rounds"].max())
        figures.draw_level(left, last + 1, f"not within {last} rounds", above=True)
        left.set_ylim(0, (last + 1) * 1.12)
        left.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        right.set_ylim(0, 1.05)
        draw_chance(right, pairs["chance_base"].iloc[0])
    figures.line_legend(figure, [switch.base_name, switch.other_name])
    title = f"{switch.key}: {switch.base} against {switch.other}"
    alt = f", by number of clients ({joined(counts)}): the numbers are in the verdict."
    return figures.finish(figure, f"study_{id}", title, alt)


@styled
def draw_clock(arms: dict[str, dict[int, Curve]]) -> Drawing:
    """Accuracy by round and by steps per client, one line a K, for the best and the worst arm."""
    means = {arm: fmean(fmean(c.accuracies[1:]) for c in curves.values()) for arm, curves in arms.items()}
    ranked = sorted(means, key=lambda arm: means[arm])
    best_and_worst = dict.fromkeys([*ranked[-1:], *ranked[:1]])
    counts = sorted({k for arm in best_and_worst for k in arms[arm]})
    places = list(product(best_and_worst, ("communication round", "optimiser steps per client")))
    figure, panels = panel_row([arm for arm, _ in places] or ["", ""], 5.0, 3.1, columns=2)
    for axes, (arm, against) in zip(panels, places, strict=False):
        is_by_steps = against.startswith("optimiser")
        for k, curve in arms[arm].items():
            x = curve.steps if is_by_steps else range(len(curve.accuracies))
            first = int(is_by_steps)  # step 0 has no place on a logarithmic axis
            look = line_style(counts.index(k)) | {"markersize": 4.5, "linewidth": 1.4}
            axes.plot(x[first:], curve.accuracies[first:], **look)
        if is_by_steps:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        accuracy_axes(axes, curve.chance, against)
    for axes in panels if not places else ():
        draw_nothing_yet(axes)
    figures.line_legend(figure, counts, "number of clients K")
    title = "Test accuracy against communication round, and against optimiser steps per client"
    alt = f": one line a K ({joined(counts)}), rows are the arms {joined(best_and_worst)}."
    return figures.finish(figure, "study_c", title, alt)


@styled
def draw_remedies(pairs: pd.DataFrame) -> Drawing:
    """Accuracy by round with each remedy and without any, one panel a K."""
    names, groups = list(pairs["name"].unique()), list(pairs.groupby("num_clients"))
    figure, panels = panel_row([f"K = {k}" for k, _ in groups] or [""], 5.0)
    untreated: Any = {"color": figures.GREY, "linewidth": 3.5, "alpha": 0.55, "label": "no remedy"}
    for axes, (_, group) in zip(panels, groups, strict=False):
        axes.plot(mean_by_round(group["accuracies_base"]), zorder=1, **untreated)
        for name, treated in group.groupby("name", sort=False):
            accuracies = mean_by_round(treated["accuracies_other"])
            look = line_style(names.index(name)) | {"markevery": max(1, len(accuracies) // 8)}
            axes.plot(accuracies, **look)
        accuracy_axes(axes, group["chance_base"].iloc[0], "communication round")
    if not groups:
        draw_nothing_yet(panels[0])
    handles = [Line2D([], [], label=name, **line_style(index)) for index, name in enumerate(names)]
    figures.add_legend(figure, [Line2D([], [], **untreated), *handles] if names else [], columns=2)
    title = "Test accuracy against communication round, with each remedy and with none"
    alt = f": {joined(names)}; one panel a K ({joined(k for k, _ in groups)})."
    return figures.finish(figure, "study_d", title, alt)


def findings(sweep: Sweep) -> Findings:
    """The page of the study: each question with its figure, then every run."""
    curves, switched, arms, remedies = _sorted_by_question(sweep)
    answers = _judge(switched, arms, remedies)
    drawings = [draw_switch(id, SWITCHES[id], pairs) for id, pairs in switched.items()]
    drawings += [draw_clock(arms), draw_remedies(remedies)]
    cells = sweep.cells.join(curves[["left", "last", "mean"]])
    never = cells["last"].map("not within {:.0f}".format)
    left = cells["left"].map("{:.0f}".format).where(cells["left"] < inf, never)
    cells = cells.assign(
        left=left.where(cells["last"].notna(), "–"),
        model=cells["model"].map(display_name),
        place=cells["arm"].map(dict(zip(sweep.arms, count(), strict=False))),
    ).sort_values(["place", "num_clients"], kind="stable")
    facts = {
        "cell_table": cells,
        "verdicts": pd.DataFrame(
            [(a.id, a.question, a.verdict) for a in answers], columns=["", "Question", "Verdict"]
        ),
        "standard_errors": CHANCE_ERRORS,
        "margin": MARGIN,
        "fewest_shared": FEWEST_SHARED,
        "clock_share": CLOCK_SHARE,
    }
    template = Path(__file__).parent / "templates" / "study.j2"
    return Findings(template, "study.json", answers, drawings, facts)
