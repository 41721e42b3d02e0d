"""The weighted mean of a round's updates, folded in one at a time, and how far the updates agree."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Elements worked on at a time: temporaries stay in the processor's cache.
BLOCK = 1 << 18


@dataclass(frozen=True)
class Agreement:
    """How one client's delta (trained - global) lies towards the mean delta."""

    update_norm: float
    """L2 norm of the delta over all shared tensors."""
    cosine_to_mean: float
    """Cosine between the delta and the mean delta; 0 where either of them is zero."""


@dataclass(frozen=True)
class RoundMean:
    """The outcome of one round."""

    tensors: Tensor  # (P,) fp32, the new global tensors
    update_norm: float
    """L2 norm of the mean delta."""
    agreements: tuple[Agreement, ...]
    """One for each update, in the order they were folded in."""
    weights: tuple[int, ...]
    """Of each update in the mean, in the same order."""


class WeightedMean:
    """FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1): sum of n_k w_k over sum of n_k.

    Sums are fp64, so a single update comes back bit for bit, and the order of folding is the caller's:
    folding in site order makes the result independent of arrival. Memory does not grow with the number
    of updates, but for a sketch of BLOCK fp32 numbers each, from which the cosines are computed: exact
    where P <= BLOCK, else within about 1/sqrt(BLOCK) = 0.002 (count sketch, Charikar et al. 2002).
    """

    def __init__(self, global_tensors: Tensor, buffer: Tensor | None = None) -> None:
        """Args:
        global_tensors: (P,) fp32 on the CPU, what the clients started from.
        buffer: (P,) fp64 to sum in, of an earlier mean: fresh memory costs more than the sums do.
        """
        self._global = global_tensors
        self.buffer = buffer
        self._delta = torch.empty(min(BLOCK, len(global_tensors)))
        self._total = 0
        self._weights: list[int] = []
        self._norms: list[float] = []
        self._sketches: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (BLOCK,), generator=generator).mul_(2).sub_(1).float()
        self._signs = torch.cat([signs, signs])  # every rotation of them is a part of this

    def add(self, trained: Tensor, weight: int) -> None:
        """Fold one update in. `trained` is (P,) fp32 and not kept; `weight` is positive."""
        assert weight > 0, weight
        norm_squared = 0.0
        sketch = torch.zeros(BLOCK)
        if self.buffer is None:
            self.buffer = torch.empty(len(self._global), dtype=torch.float64)
        for number, block in enumerate(self._blocks()):
            total, new = self.buffer[block], trained[block]
            if self._total == 0:
                total.copy_(new).mul_(weight)
            else:
                total.add_(new, alpha=weight)
            delta = torch.sub(new, self._global[block], out=self._delta[: len(new)])
            norm_squared += torch.dot(delta, delta).item()
            # A different rotation of the signs for each block makes them independent between blocks.
            start = BLOCK - number % BLOCK
            sketch[: len(delta)].addcmul_(delta, self._signs[start : start + len(delta)])
        self._total += weight
        self._weights.append(weight)
        self._norms.append(sqrt(norm_squared))
        self._sketches.append(sketch)

    def finish(self) -> RoundMean:
        """The mean of everything folded in. At least one update must have been."""
        assert self.buffer is not None, "nothing was folded in"
        tensors = torch.empty_like(self._global)
        norm_squared = 0.0
        for block in self._blocks():
            tensors[block] = self.buffer[block].div_(self._total)
            delta = torch.sub(tensors[block], self._global[block], out=self._delta[: len(tensors[block])])
            norm_squared += torch.dot(delta, delta).item()
        mean_norm = sqrt(norm_squared)
        weighted = zip(self._sketches, self._weights, strict=True)
        mean_sketch = sum((sketch * weight for sketch, weight in weighted), torch.zeros(BLOCK)) / self._total
        agreements = tuple(
            Agreement(norm, _cosine(torch.dot(sketch, mean_sketch).item(), norm * mean_norm))
            for sketch, norm in zip(self._sketches, self._norms, strict=True)
        )
        return RoundMean(tensors, mean_norm, agreements, tuple(self._weights))

    def _blocks(self) -> list[slice]:
        size = len(self._global)
        return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


def _cosine(product: float, norms: float) -> float:
    return max(-1.0, min(1.0, product / norms)) if norms > 0 else 0.0
