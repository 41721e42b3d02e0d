"""The largest norm that an update may have."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor

from wardround.common.errors import BadAnswer
from wardround.common.model.flat import distance
from wardround.common.settings.strategy import StrategySettings


class NormBound:
    """Largest L2 norm of an update: fixed, or relative to the median of earlier rounds."""

    def __init__(self, settings: StrategySettings) -> None:
        self._settings = settings
        self._norms: list[float] = []
        """Norms of all updates in the means of earlier rounds."""

    @property
    def largest(self) -> float | None:
        """The bound in this round; None if there is no bound."""
        bound = self._settings.max_update_norm
        ratio = self._settings.max_norm_ratio
        if ratio is None or not self._norms:
            return bound
        relative = ratio * median(self._norms)
        return relative if bound is None else min(bound, relative)

    def close_round(self, norms: Iterable[float]) -> None:
        """Add the norms of a round's updates; they count from the next round on."""
        self._norms += norms

    def apply(
        self, trained: Tensor, global_tensors: Tensor
    ) -> tuple[Tensor, float | None]:
        """Return the update within its bound.

        Args:
            trained: (P,) fp32; is not changed.
            global_tensors: (P,) fp32.

        Returns:
            The tensors, (P,) fp32, and the norm as received if it was too large, else
            None.

        Raises:
            BadAnswer: the norm is too large, and `strategy.on_excess` is `refuse`.
        """
        largest = self.largest
        if largest is None:
            return trained, None
        norm = distance(trained, global_tensors)
        if norm <= largest:
            return trained, None
        if self._settings.on_excess == "refuse":
            raise BadAnswer(
                f"its update has a norm of {norm:.4g}; the most allowed is {largest:.4g}"
            )
        delta = torch.sub(trained, global_tensors)
        return delta.mul_(largest / norm).add_(global_tensors), norm
