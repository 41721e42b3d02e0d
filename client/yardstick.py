"""The yardstick of `client/bounds.py`: how far this site's own training moves each tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MOST_GROWTH = 3.0
"""Limit of a yardstick, as a multiple of the smallest one measured under its plan. A server that
makes a site move further does not get a wider bound."""


@dataclass(frozen=True)
class Yardstick:
    """The distance that this site moves each tensor, per unit of learning rate."""

    per_tensor: np.ndarray  # (T,) fp64, in the order of `Layout.names`
    smallest: np.ndarray  # (T,) fp64: the smallest of every tensor so far; 0 for none

    @classmethod
    def of(
        cls, norms: np.ndarray, sum_of_rates: float, before: Yardstick | None
    ) -> Yardstick:
        """Compute the yardstick after one update.

        Args:
            norms: (T,) fp64, L2 norm of the update of each tensor.
            sum_of_rates: sum of the learning rates of all its steps.
            before: the earlier yardstick, or None.

        Raises:
            ValueError: a number is not finite.
        """
        measured = norms / sum_of_rates
        if not np.isfinite(measured).all():
            raise ValueError(
                "this site's own update is not finite, so it gives no bound"
            )
        if before is None:
            return cls(measured, measured)
        smallest = _smaller(before.smallest, measured)
        largest = _MOST_GROWTH * smallest
        bounded = np.minimum(measured, largest)
        # A round that does not train a tensor does not measure it.
        is_measured = measured > 0
        moved = np.where(is_measured, bounded, before.per_tensor)
        return cls(moved, smallest)


def _smaller(before: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the smaller of two positive numbers; 0 means that there is no number."""
    smaller = np.minimum(before, measured)
    is_missing = measured == 0
    smaller = np.where(is_missing, before, smaller)
    return np.where(before == 0, measured, smaller)
