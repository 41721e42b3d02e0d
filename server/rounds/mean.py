"""The weighted mean of a round's updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch

from wardround.common.model.flat import cosine

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 18
"""Elements worked on at a time, so that temporaries stay in the cache; also those of an update's sketch."""


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
    weights: tuple[float, ...]
    """Of each update in the mean, in the same order."""


class SumMemory:
    """Three pieces of memory for the whole run: pages fresh from the system cost more than the sums do.

    piece 0   fp64 sums of the tensors' first half; the mean, (P,) fp32, is written over them in the end
    piece 1   fp64 sums of the second half
    piece 2   the mean of the round before: the global tensors that this round's clients started from

    After a round the pieces move on by one place. So a mean holds until the second round after it begins.
    """

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        """Each (at least P,) fp32."""

    def reserve(self, size: int) -> None:
        """Have pieces of `size` fp32 numbers; memory that is not written to yet takes no room."""
        if not self.pieces or len(self.pieces[0]) != size:
            self.pieces = [torch.empty(size) for _ in range(3)]


class WeightedMean:
    """FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1): sum of n_k w_k over sum of n_k.

    Sums are fp64, so a single update comes back bit for bit, and the order of folding is the caller's:
    folding in site order makes the result independent of arrival. Memory does not grow with the number
    of updates, but for a sketch of BLOCK fp32 numbers each, from which the cosines are computed: exact
    where P <= BLOCK, else within about 1/sqrt(BLOCK) = 0.002 (count sketch, Charikar et al. 2002).
    """

    def __init__(self, global_tensors: Tensor, memory: SumMemory | None = None) -> None:
        """Args:
        global_tensors: (P,) fp32 on the CPU, what the clients started from.
        memory: of the means before, to go on with.
        """
        self._global = global_tensors
        self._half = min(
            len(global_tensors), -(-len(global_tensors) // (2 * BLOCK)) * BLOCK
        )
        self._memory = SumMemory() if memory is None else memory
        self._delta = torch.empty(min(BLOCK, len(global_tensors)))
        self._total: float = 0
        self._weights: list[float] = []
        self._norms: list[float] = []
        self._sketches: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)
        signs = (
            torch.randint(0, 2, (BLOCK,), generator=generator).mul_(2).sub_(1).float()
        )
        self._signs = torch.cat(
            [signs, signs]
        )  # every rotation of them is a part of this

    def add(self, trained: Tensor, weight: float) -> None:
        """Fold one update in. `trained` is (P,) fp32 and not kept; `weight` is positive."""
        assert weight > 0, weight
        norm_squared = 0.0
        sketch = torch.zeros(BLOCK)
        for block, total in self._sums():
            new = trained[block]
            if self._total == 0:
                total.copy_(new).mul_(weight)
            else:
                total.add_(new, alpha=weight)
            delta = torch.sub(new, self._global[block], out=self._delta[: len(new)])
            norm_squared += torch.dot(delta, delta).item()
            # A different rotation of the signs for each block makes them independent between blocks.
            turned = BLOCK - block.start // BLOCK % BLOCK
            sketch[: len(delta)].addcmul_(
                delta, self._signs[turned : turned + len(delta)]
            )
        self._total += weight
        self._weights.append(weight)
        self._norms.append(sqrt(norm_squared))
        self._sketches.append(sketch)

    def finish(self) -> RoundMean:
        """The mean of everything folded in, after which nothing more can be. One update must have been."""
        assert self._total > 0, "nothing was folded in"
        tensors = self._memory.pieces[0][: len(self._global)]
        norm_squared = 0.0
        for block, total in self._sums():
            # The sums under `mean` are those of this block and of earlier ones, which nobody needs any more.
            mean = tensors[block].copy_(total / self._total)
            delta = torch.sub(mean, self._global[block], out=self._delta[: len(mean)])
            norm_squared += torch.dot(delta, delta).item()
        self._memory.pieces.append(
            self._memory.pieces.pop(0)
        )  # the mean is kept for a round
        mean_norm = sqrt(norm_squared)
        weighted = zip(self._sketches, self._weights, strict=True)
        mean_sketch = (
            sum((sketch * weight for sketch, weight in weighted), torch.zeros(BLOCK))
            / self._total
        )
        agreements = tuple(
            Agreement(
                norm, cosine(torch.dot(sketch, mean_sketch).item(), norm * mean_norm)
            )
            for sketch, norm in zip(self._sketches, self._norms, strict=True)
        )
        return RoundMean(tensors, mean_norm, agreements, tuple(self._weights))

    def _sums(self) -> Iterator[tuple[slice, Tensor]]:
        """Every block of the tensors, in order, and its fp64 sums."""
        size, half = len(self._global), self._half
        self._memory.reserve(2 * half)
        for sums, first, end in zip(
            self._memory.pieces, (0, half), (half, size), strict=False
        ):
            for start in range(first, end, BLOCK):
                block = slice(start, min(start + BLOCK, end))
                yield (
                    block,
                    sums.view(torch.float64)[block.start - first : block.stop - first],
                )
