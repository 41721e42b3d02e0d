"""The yardstick of `client/bounds.py`: how far this site's own training moves each tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MOST_GROWTH = 3.0
"""A yardstick is at most so many times the smallest that was measured under its plan: a server that makes a
site move further cannot buy itself a wider bound with that."""


@dataclass(frozen=True)
class Yardstick:
    """How far this site moves each tensor of a plan's model, per unit of learning rate."""

    per_tensor: np.ndarray  # (T,) fp64, in the order of `Layout.names`
    smallest: np.ndarray  # (T,) fp64: the smallest of every tensor so far; 0 for none

    @classmethod
    def of(
        cls, norms: np.ndarray, sum_of_rates: float, before: Yardstick | None
    ) -> Yardstick:
        """From one update.

        Args:
            norms: (T,) fp64, L2 norm of the update of each tensor.
            sum_of_rates: of all optimiser steps that made it.
            before: the yardstick so far; None if there is none.

        Raises:
            ValueError: a number is not finite.
        """
        measured = norms / sum_of_rates
        if not np.isfinite(measured).all():
            raise ValueError(
                "this site's own update is not finite, and bounds no model"
            )
        smallest = measured if before is None else _smaller(before.smallest, measured)
        # A tensor that a round leaves alone says nothing about how far it moves when it is trained.
        previous = measured if before is None else before.per_tensor
        moved = np.where(
            measured > 0, np.minimum(measured, _MOST_GROWTH * smallest), previous
        )
        return cls(moved, smallest)


def _smaller(before: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The smaller of two positive numbers; 0 stands for none."""
    both = np.minimum(before, measured)
    return np.where(before == 0, measured, np.where(measured == 0, before, both))
