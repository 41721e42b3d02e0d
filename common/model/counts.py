"""What an evaluation counted: sums, so that the parts of several sites add up exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_COUNTED = 2**40
"""In a cell of a table, of a client's examples or steps: sums over all of them stay inside 64 bits. A loss
beyond it is none."""


@dataclass(frozen=True)
class Counts:
    """Sums over evaluated examples; the sums of several evaluations add up exactly."""

    loss_sum: float
    confusion: np.ndarray  # (C, C) int64, rows are true classes, columns predicted ones
    batch_accuracies: tuple[float, ...]
    validation: Counts | None = None
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
        true_positives = np.diag(self.confusion)
        denominator = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return float(np.mean(2 * true_positives / np.maximum(denominator, 1)))

    @property
    def parts(self) -> tuple[Counts, ...]:
        """These counts, and those of the validation part where there is one."""
        return (self,) if self.validation is None else (self, self.validation)

    def __add__(self, other: Counts) -> Counts:
        assert (self.validation is None) == (other.validation is None), "one lacks a validation part"
        return Counts(
            self.loss_sum + other.loss_sum,
            self.confusion + other.confusion,
            self.batch_accuracies + other.batch_accuracies,
            self.validation + other.validation if self.validation and other.validation else None,
        )
