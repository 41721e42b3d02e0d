"""A bound on the norm of each update."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

import torch

from wardround.common.errors import BadAnswer
from wardround.common.model.flat import distance
from wardround.common.settings.strategy import StrategySettings

if TYPE_CHECKING:
    from torch import Tensor


class NormBound:
    """Largest L2 norm of an update; relative to the median of what earlier rounds took, if so set."""

    def __init__(
        self, settings: StrategySettings, earlier: Iterable[float] = ()
    ) -> None:
        """Args: earlier: norms of all updates that the run's rounds took so far."""
        self._settings = settings
        self._norms = list(earlier)

    @property
    def largest(self) -> float | None:
        """The bound in this round; None for none."""
        bound, ratio = self._settings.max_update_norm, self._settings.max_norm_ratio
        if ratio is None or not self._norms:
            return bound
        relative = ratio * median(self._norms)
        return relative if bound is None else min(bound, relative)

    def close_round(self, norms: Iterable[float]) -> None:
        """Take the norms of a round's updates into account from the next round on."""
        self._norms += norms

    def apply(
        self, trained: Tensor, global_tensors: Tensor
    ) -> tuple[Tensor, float | None]:
        """The update within its bound, both (P,) fp32, and its norm as received if that was beyond it.

        Raises:
            BadAnswer: it is beyond, and `strategy.on_excess` is `refuse`.
        """
        largest = self.largest
        if largest is None:
            return trained, None
        norm = distance(trained, global_tensors)
        if norm <= largest:
            return trained, None
        if self._settings.on_excess == "refuse":
            raise BadAnswer(
                f"its update has a norm of {norm:.4g}, and {largest:.4g} is the most here"
            )
        return torch.sub(trained, global_tensors).mul_(largest / norm).add_(
            global_tensors
        ), norm
