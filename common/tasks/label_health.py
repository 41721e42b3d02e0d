"""Signs of a collapse with one label a text: one predicted class, chance, or a diverged loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

from wardround.common.tasks.health import Condition

SINGLE_CLASS_SHARE = 0.95
"""Predictions are of a single class if it has at least this share of them, and a smaller
share of the true labels."""
CHANCE_ERRORS = 2.0
"""Accuracy is above chance if it exceeds the largest class's share by more than this many
binomial standard errors."""
DIVERGED_LOSS = 10.0
"""A loss has diverged above this multiple of ln C, the loss of an even guess."""


def chance_limit(largest_class_share: float, num_examples: int) -> float:
    """Highest accuracy that is still chance: p + CHANCE_ERRORS x sqrt(p (1 - p) / n)."""
    variance = largest_class_share * (1 - largest_class_share) / num_examples
    return largest_class_share + CHANCE_ERRORS * sqrt(variance)


@dataclass(frozen=True)
class ScoredRound:
    """The numbers of one measured round that the conditions use."""

    round: int
    accuracy: float
    loss: float
    num_examples: int
    shares: tuple[float, ...]
    """Share of the test predictions in each class."""
    largest_class_share: float
    """Share of the most frequent true class: the accuracy of always predicting it."""

    @classmethod
    def of(cls, round: int, facts: Mapping[str, Any]) -> ScoredRound | None:
        """Take the numbers from `facts`, as `Task.scored`; return None if one is missing."""
        keys = (
            "accuracy",
            "loss",
            "num_examples",
            "predicted_shares",
            "largest_class_share",
        )
        values: list[Any] = [facts.get(key) for key in keys]
        if None in values:
            return None
        accuracy, loss, num_examples, shares, largest = values
        return cls(round, accuracy, loss, num_examples, tuple(shares), largest)

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """The conditions of this task."""
        return CONDITIONS

    @property
    def chance_limit(self) -> float:
        """Highest accuracy that is still chance."""
        return chance_limit(self.largest_class_share, self.num_examples)


def _diverged(scored: ScoredRound) -> int | None:
    even_guess = log(len(scored.shares))
    return 0 if scored.loss > DIVERGED_LOSS * even_guess else None


def _single_class(scored: ScoredRound) -> int | None:
    share = max(scored.shares)
    is_single = share >= SINGLE_CLASS_SHARE > scored.largest_class_share
    return scored.shares.index(share) if is_single else None


def _at_chance(scored: ScoredRound) -> int | None:
    return 0 if scored.accuracy <= scored.chance_limit else None


CONDITIONS: Mapping[str, Condition] = {
    "diverged": Condition(
        _diverged,
        f"the test loss is over {DIVERGED_LOSS:g} times that of an even guess",
        is_divergence=True,
    ),
    "single class": Condition(
        _single_class,
        f"at least {SINGLE_CLASS_SHARE:.0%} of the test predictions are '{{label}}'",
    ),
    "at chance": Condition(
        _at_chance,
        "accuracy is not above the largest class's share of the test set",
    ),
}
"""By name, the clearest sign first."""
