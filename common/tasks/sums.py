"""What an evaluation counted: sums, so that the parts of several sites add up exactly."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from wardround.common.runtime import numpy_stream

MOST_COUNTED = 2**40
"""In a cell of a table, of a client's examples or steps: sums over all of them stay inside 64 bits. A loss
beyond it is none."""
_Z = (
    1.959964  # of a normal distribution, 95 % lie within so many deviations of the mean
)
_DRAWS = 1000

Interval = tuple[float, float]
"""Lower and upper bound, with 95 % confidence."""


@dataclass(frozen=True)
class Sums:
    """Sums over evaluated examples; the sums of several evaluations add up exactly."""

    loss_sum: float
    confusion: np.ndarray  # (C, C) int64, rows are true classes, columns predicted ones
    batch_accuracies: tuple[float, ...]
    validation: Sums | None = None
    """Of the texts that choose the best model, which are none of the above; None where there are none."""

    @property
    def num_examples(self) -> int:
        """Examples evaluated."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy per example."""
        return self.loss_sum / self.num_examples

    @property
    def accuracy(self) -> float:
        """Share of examples whose predicted class is the true one."""
        return int(np.trace(self.confusion)) / self.num_examples

    @property
    def macro_f1(self) -> float:
        """Unweighted mean of the classes' F1; a class neither present nor predicted counts as 0."""
        return float(_macro_f1(self.confusion))

    @property
    def accuracy_interval(self) -> Interval:
        """Wilson's score interval (1927), which stays inside [0, 1] and holds for few examples too."""
        share, num = self.accuracy, self.num_examples
        spread = _Z * sqrt(share * (1 - share) / num + (_Z / (2 * num)) ** 2)
        low, high = (
            (share + _Z**2 / (2 * num) + sign * spread) / (1 + _Z**2 / num)
            for sign in (-1, 1)
        )
        return max(0.0, low), min(1.0, high)  # rounding may lead past them

    @property
    def macro_f1_interval(self) -> Interval:
        """Percentile bootstrap (Efron 1979): 1,000 draws of as many examples, the same draws each time."""
        shares = self.confusion.ravel() / self.num_examples
        drawn = numpy_stream(0, "bootstrap").multinomial(
            self.num_examples, shares, _DRAWS
        )
        low, high = np.quantile(
            _macro_f1(drawn.reshape(-1, *self.confusion.shape)), [0.025, 0.975]
        )
        return float(low), float(high)

    @property
    def parts(self) -> tuple[Sums, ...]:
        """These counts, and those of the validation part where there is one."""
        return (self,) if self.validation is None else (self, self.validation)

    def __add__(self, other: Sums) -> Sums:
        assert (self.validation is None) == (other.validation is None), (
            "one lacks a validation part"
        )
        return Sums(
            self.loss_sum + other.loss_sum,
            self.confusion + other.confusion,
            self.batch_accuracies + other.batch_accuracies,
            self.validation + other.validation
            if self.validation and other.validation
            else None,
        )


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(…, C, C) -> (…)."""
    true_positives = np.diagonal(confusion, axis1=-2, axis2=-1)
    denominator = confusion.sum(axis=-2) + confusion.sum(axis=-1)
    mean: np.ndarray = np.mean(2 * true_positives / np.maximum(denominator, 1), axis=-1)
    return mean
