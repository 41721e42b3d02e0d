"""Sums of an evaluation: they add up exactly over batches and over sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MOST_COUNTED = 2**40
"""The most that one sum of a client may be. Then totals over all clients stay inside 64 bits."""


@dataclass(frozen=True)
class Sums:
    """Sums over evaluated texts; the sums of several evaluations add up exactly."""

    num_examples: int
    """Texts evaluated."""
    loss_sum: float
    """Sum of the losses of these texts."""
    arrays: Mapping[str, np.ndarray]
    """Integer arrays by name. Each task defines its own; they are added element by element."""
    batch_scores: tuple[float, ...] = ()
    """Score of each batch, in order; empty if a site sent the sums."""
    validation: Sums | None = None
    """Sums over the texts that choose the best model; None if there are no such texts."""

    @property
    def loss(self) -> float:
        """Mean loss of a text."""
        return self.loss_sum / self.num_examples

    @property
    def parts(self) -> tuple[Sums, ...]:
        """These sums, then those of the validation part if there is one."""
        return (self,) if self.validation is None else (self, self.validation)

    def __add__(self, other: Sums) -> Sums:
        validation = None
        if self.validation is not None:
            assert other.validation is not None, "one lacks a validation part"
            validation = self.validation + other.validation
        else:
            assert other.validation is None, "one lacks a validation part"
        return Sums(
            num_examples=self.num_examples + other.num_examples,
            loss_sum=self.loss_sum + other.loss_sum,
            arrays={
                name: array + other.arrays[name] for name, array in self.arrays.items()
            },
            batch_scores=self.batch_scores + other.batch_scores,
            validation=validation,
        )
