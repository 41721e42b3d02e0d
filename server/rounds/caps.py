"""Bounds on what one client can do to the model: its weight in the mean, and the length of its update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import median
from typing import TYPE_CHECKING

import torch

from common.settings import StrategySettings
from common.wire.messages import Refused
from server.rounds.fedavg import BLOCK
from server.rounds.roster import Member

if TYPE_CHECKING:
    from torch import Tensor


def weights_of(members: Sequence[Member], settings: StrategySettings) -> dict[int, float]:
    """Weight of each member's update in the mean, by client number.

    Bounded by `max_share` of all members; where some do not answer, the shares of the others grow alike.
    """
    if settings.weighting == "examples":
        weights: dict[int, float] = {member.client: member.weight for member in members}
    else:
        weights = {member.client: 1 for member in members}
    return weights if settings.max_share is None else capped(weights, settings.max_share)


def capped(weights: Mapping[int, float], max_share: float) -> dict[int, float]:
    """The largest weights lowered to one value, so that none is more than `max_share` of their sum.

    With m lowered to c and a sum R of the others, c = max_share (m c + R); equal weights where nothing else
    will do.
    """
    largest_first = sorted(weights.values(), reverse=True)
    rest = float(sum(largest_first))
    for number, weight in enumerate(largest_first):
        share_left = 1 - max_share * number
        bound = max_share * rest / share_left if share_left > 1e-12 else 0.0
        if weight <= bound:
            return {client: min(own, bound) if number else own for client, own in weights.items()}
        rest -= weight
    return {client: min(largest_first) for client in weights}


class NormBound:
    """Largest L2 norm of an update; relative to the median of what earlier rounds took, if so set."""

    def __init__(self, settings: StrategySettings, earlier: Iterable[float] = ()) -> None:
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

    def apply(self, trained: Tensor, global_tensors: Tensor) -> tuple[Tensor, float | None]:
        """The update within its bound, both (P,) fp32, and its norm as received if that was beyond it.

        Raises:
            Refused: it is beyond, and `strategy.on_excess` is `refuse`.
        """
        largest = self.largest
        if largest is None:
            return trained, None
        norm = update_norm(trained, global_tensors)
        if norm <= largest:
            return trained, None
        if self._settings.on_excess == "refuse":
            raise Refused(f"its update has a norm of {norm:.4g}, and {largest:.4g} is the most here")
        shrunk = torch.sub(trained, global_tensors).mul_(largest / norm).add_(global_tensors)
        return shrunk, norm


def update_norm(trained: Tensor, global_tensors: Tensor) -> float:
    """L2 norm of (trained - global), block by block."""
    squared = 0.0
    for start in range(0, len(trained), BLOCK):
        delta = trained[start : start + BLOCK] - global_tensors[start : start + BLOCK]
        squared += torch.dot(delta, delta).item()
    return sqrt(squared)
