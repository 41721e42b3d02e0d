"""A verdict for each question of a study, with the numbers behind it.

The thresholds are ours; every verdict is printed with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from server.report.result_table import joined
from studies.study import SWITCHES, Remedy, Study, Switch
from studies.study_curves import STANDARD_ERRORS, Curve, Pair, by_clients

MARGIN = 0.05
"""Mean accuracy over the rounds by which two sides have to differ to differ at all."""
CLOCK_SHARE = 0.5
"""Share of the gap by rounds to which the gap by steps has to fall for K to be mostly a clock."""
FEWEST_SHARED = 3
"""Step counts that two K must have in common to be compared by steps."""
CLOCK = "Is it only the number of steps? Do the curves of all K fall on one line against steps per client?"
REMEDIES = "Does a remedy work?"


@dataclass(frozen=True)
class Answer:
    """One question with its verdict; the fields are the keys of `study.json`."""

    id: str
    question: str
    verdict: str
    numbers: dict[str, object]
    explanation: str


def judge_study(study: Study) -> list[Answer]:
    """A verdict for each question, in their order."""
    switches = [_judge_switch(switch, study.switched[switch.id]) for switch in SWITCHES]
    return [*switches, _judge_clock(study.arms()), _judge_remedies(study.remedies)]


def _judge_switch(switch: Switch, pairs: Sequence[Pair]) -> Answer:
    """Yes if `other` costs MARGIN of mean accuracy or more over K > 1, and leaves chance later more often."""
    several = [pair for pair in pairs if pair.num_clients > 1]
    numbers: dict[str, object] = {
        "switch": f"{switch.key}: {switch.base} -> {switch.other}",
        "margin": MARGIN,
        "standard_errors": STANDARD_ERRORS,
        "by_k": {str(k): _pair_numbers(group) for k, group in by_clients(pairs).items()},
    }
    if not several:
        return Answer(switch.id, switch.question, "not tested", numbers, "No two runs differ in this alone.")
    difference = fmean(pair.difference for pair in several)
    later, earlier = (sum(pair.order == sign for pair in several) for sign in (1, -1))
    if difference <= -MARGIN and later > earlier:
        verdict = "yes"
    elif difference >= MARGIN and earlier > later:
        verdict = "no, the other way round"
    else:
        verdict = "no clear difference"
    numbers |= {"difference": difference, "later": later, "earlier": earlier, "pairs": len(several)}
    base, other = switch.names
    explanation = (
        f"Pairs of runs with K > 1 that differ in {switch.key} alone: {len(several)}. With {other} a run "
        f"leaves chance later than with {base} in {later}, earlier in {earlier}, in the same round or never "
        f"in {len(several) - later - earlier}. Its gain in mean accuracy over the rounds: {difference:+.3f} "
        f"({_by_k(pairs)})."
    )
    return Answer(switch.id, switch.question, verdict, numbers, explanation)


def _pair_numbers(pairs: Sequence[Pair]) -> dict[str, object]:
    return {
        "difference": fmean(pair.difference for pair in pairs),
        "left_chance": [[pair.base.left_chance(), pair.other.left_chance()] for pair in pairs],
        "arms": [[pair.base.name, pair.other.name] for pair in pairs],
        "rounds": [pair.num_rounds for pair in pairs],
    }


def _by_k(pairs: Sequence[Pair]) -> str:
    return ", ".join(
        f"K = {k}: {fmean(pair.difference for pair in group):+.3f}" for k, group in by_clients(pairs).items()
    )


def gaps(low: Curve, high: Curve) -> tuple[float, float] | None:
    """Mean gap in accuracy between two K, by rounds and by steps; None where their steps do not overlap.

    Args:
        low: the curve of fewer clients, so of more steps a round. The other is read at its step counts,
            by linear interpolation.
    """
    num_rounds = min(low.num_rounds, high.num_rounds)
    by_rounds = np.abs(np.subtract(low.accuracies[: num_rounds + 1], high.accuracies[: num_rounds + 1]))[1:]
    shared = [r for r in range(1, low.num_rounds + 1) if low.steps[r] <= high.steps[-1]]
    if len(shared) < FEWEST_SHARED:
        return None
    theirs = np.interp([low.steps[r] for r in shared], high.steps, high.accuracies)
    by_steps = np.abs(np.array([low.accuracies[r] for r in shared]) - theirs)
    return float(by_rounds.mean()), float(by_steps.mean())


def _judge_clock(arms: Mapping[str, Mapping[int, Curve]]) -> Answer:
    """Yes if two K are less than MARGIN apart at equal steps; mostly if that halves the gap by rounds."""
    found = {
        f"{arm} K={low}/{high}": gap
        for arm, curves in arms.items()
        for low, high in combinations(curves, 2)
        if (gap := gaps(curves[low], curves[high])) is not None
    }
    numbers: dict[str, object] = {"margin": MARGIN, "clock_share": CLOCK_SHARE, "gaps": found}
    if not found:
        return Answer(
            "c", CLOCK, "not tested", numbers, f"No two K have {FEWEST_SHARED} step counts in common."
        )
    by_rounds, by_steps = (fmean(values) for values in zip(*found.values(), strict=True))
    if by_rounds < MARGIN:
        verdict = "nothing to explain"
    elif by_steps < MARGIN:
        verdict = "yes"
    else:
        verdict = "mostly" if by_steps <= CLOCK_SHARE * by_rounds else "no"
    numbers |= {"gap_by_rounds": by_rounds, "gap_by_steps": by_steps}
    explanation = (
        f"Two K of one arm are {by_rounds:.3f} apart in accuracy at equal rounds and {by_steps:.3f} at equal "
        f"steps per client (mean over {len(found)} pairs of K in {len(arms)} arms, where steps overlap)."
    )
    return Answer("c", CLOCK, verdict, numbers, explanation)


def _judge_remedies(remedies: Sequence[Remedy]) -> Answer:
    """A remedy works where it gains MARGIN of mean accuracy or more at every K tried."""
    if not remedies:
        return Answer("d", REMEDIES, "not tested", {"margin": MARGIN}, "No run was given one.")
    lines, working, found = [], [], {}
    for remedy in remedies:
        groups = by_clients(remedy.pairs)
        gains = {k: fmean(pair.difference for pair in group) for k, group in groups.items()}
        if min(gains.values()) >= MARGIN:
            outcome = "works"
            working.append(remedy.name)
        elif max(gains.values()) <= -MARGIN:
            outcome = "harms"
        else:
            outcome = "helps at some K" if max(gains.values()) >= MARGIN else "no clear effect"
        entry = {str(k): _pair_numbers(group) for k, group in groups.items()}
        found[remedy.name] = {"outcome": outcome, "by_k": entry}
        lines.append(f"{remedy.name}: {outcome} ({_by_k(remedy.pairs)})")
    verdict = f"yes: {joined(working)}" if working else "none that was tried"
    numbers: dict[str, object] = {"margin": MARGIN, "remedies": found}
    return Answer(
        "d", REMEDIES, verdict, numbers, f"Mean accuracy over the rounds gained: {'; '.join(lines)}."
    )
