"""When a claim of the paper holds: pure functions of numbers, their thresholds named here and nowhere else.

Accuracies are shares in [0, 1]. The paper says "sharp", "near chance" and "mostly" without numbers;
the thresholds are ours, and every verdict is printed with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Literal

Finding = Literal["holds", "fails", "open"]
Verdict = Literal["supported", "contradicted", "not_tested"]
Key = tuple[str, str, int]
"""Model, data set, number of clients."""

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
"""A round sits at chance when its accuracy is at most chance plus this."""
LONG_PLATEAU = 0.20
"""Share of the budget's rounds that a plateau has to last to be long."""
LEARNED_MARGIN = 0.05
"""K = 1 has to beat chance by more than this; otherwise there is no decline to measure."""
STEEPER_MARGIN = 0.01
"""Mean retained accuracy by which one decline has to exceed another to be steeper."""


@dataclass(frozen=True)
class Part:
    """One checkable piece of a claim, what was found, and the numbers behind it."""

    name: str
    finding: Finding
    numbers: dict[str, object]
    needs: tuple[Key, ...] = ()
    """Cells this part cannot do without."""
    why_open: str = ""
    note: str = ""
    """What was found, in words."""


def retained(accuracy: float, baseline: float, chance: float) -> float:
    """Share of what K = 1 learned above chance that is left: 1 is all of it, 0 is guessing."""
    return (accuracy - chance) / (baseline - chance)


def has_learned(baseline: float, chance: float) -> bool:
    """Whether K = 1 beats chance clearly enough for a decline to mean something."""
    return baseline - chance > LEARNED_MARGIN


def largest_drop(shares: Mapping[int, float], ends_from: int = 2) -> tuple[int, float]:
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


def declines_gradually(shares: Mapping[int, float], complete: bool) -> Finding:
    """No drop in one doubling above SHARP_DROP, and no rise at the end above RISE_TOLERANCE."""
    if largest_drop(shares)[1] > SHARP_DROP:
        return "fails"
    if not complete:
        return "open"
    return "holds" if shares[max(shares)] <= 1 + RISE_TOLERANCE else "fails"


def drops_steeply(shares: Mapping[int, float], ends_from: int, complete: bool) -> Finding:
    """Some doubling that ends at `ends_from` clients or more loses more than SHARP_DROP."""
    if largest_drop(shares, ends_from)[1] > SHARP_DROP:
        return "holds"
    return "fails" if complete else "open"


def is_near_chance(share: float) -> Finding:
    """At most NEAR_CHANCE of the accuracy above chance is left."""
    return "holds" if share <= NEAR_CHANCE else "fails"


def struggles(accuracy: float, baseline: float) -> Finding:
    """Accuracy at the budget below STRUGGLING_SHARE of the K = 1 accuracy."""
    return "holds" if accuracy < STRUGGLING_SHARE * baseline else "fails"


def mostly_reached(num_reached: int, num_missed: int, num_cells: int) -> Finding:
    """At least MOSTLY of all cells reach the target; decided early only when no cell left can rescue it."""
    if (num_cells - num_missed) / num_cells < MOSTLY:
        return "fails"
    return "holds" if num_reached + num_missed == num_cells else "open"


def rounds_at_chance(curve: Sequence[float], chance: float) -> int:
    """Rounds after the initial model before the curve first leaves chance; its whole length if it never does.

    Args:
        curve: test accuracy of round 0, 1, 2 …
    """
    for number, accuracy in enumerate(curve):
        if accuracy > chance + AT_CHANCE_MARGIN:
            return max(number - 1, 0)
    return max(len(curve) - 1, 0)


def waits_then_moves(curve: Sequence[float], chance: float, budget: int) -> bool:
    """At chance for LONG_PLATEAU of the budget or longer, and above it later."""
    waited = rounds_at_chance(curve, chance)
    return LONG_PLATEAU * budget <= waited < len(curve) - 1


def never_moves(curve: Sequence[float], chance: float, budget: int) -> bool:
    """At chance from the first round to the last, the budget included."""
    return rounds_at_chance(curve, chance) == len(curve) - 1 >= budget


def mean_loss(shares: Mapping[int, float]) -> float:
    """Steepness of a decline: mean over K > 1 of the accuracy above chance that is lost."""
    losses = [1 - share for num_clients, share in shares.items() if num_clients > 1]
    return sum(losses) / len(losses)


def is_steepest(loss: float, others: Sequence[float]) -> Finding:
    """`loss` exceeds every other by more than STEEPER_MARGIN; a tie does not."""
    return "holds" if loss > max(others) + STEEPER_MARGIN else "fails"


def combine(parts: Sequence[Part]) -> Verdict:
    """Contradicted if any part fails; supported if every part is tested and holds; else not tested."""
    findings = {part.finding for part in parts}
    if "fails" in findings:
        return "contradicted"
    return "supported" if findings == {"holds"} else "not_tested"
