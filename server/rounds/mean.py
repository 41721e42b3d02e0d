"""The weighted mean of a round's updates, with norms and cosines of single updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor

from wardround.common.model.flat import cosine

BLOCK = 1 << 18
"""Elements that are processed at a time, so that temporaries stay in the cache. A sketch of
an update has as many numbers."""


@dataclass(frozen=True)
class RoundMean:
    """The weighted mean of the updates of one round."""

    tensors: Tensor  # (P,) fp32
    update_norm: float
    """L2 norm of the mean delta."""
    weights: tuple[float, ...]
    """The weight of each update, in the order of folding."""
    client_norms: tuple[float, ...] | None = None
    """L2 norm of each client's delta (trained - global), in the same order; None if the
    server received only the sum of the updates."""
    cosines_to_mean: tuple[float, ...] | None = None
    """Cosine between each client's delta and the mean delta, 0 if one of them is zero;
    None if `client_norms` is None."""


class SumMemory:
    """Three pieces of memory for the whole run. New memory would cost more time than the sums.

    piece 0   fp64 sums of the tensors' first half; at the end the mean, (P,) fp32, is
              written over them
    piece 1   fp64 sums of the second half
    piece 2   the mean of the previous round: the global tensors from which the clients
              of this round started

    After a round the pieces move on by one place. So a mean is valid until the second
    round after it begins.
    """

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        """Each (at least P,) fp32."""

    def reserve(self, size: int) -> None:
        """Reserve pieces of `size` fp32 numbers. Memory that is not written yet takes no room."""
        if not self.pieces or len(self.pieces[0]) != size:
            self.pieces = [torch.empty(size) for _ in range(3)]


class WeightedMean:
    """FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1): sum of n_k w_k over sum of n_k.

    Sums are fp64, so a single update comes back bit for bit. The caller chooses the
    order of folding: in the order of the sites, the result does not depend on the order
    of arrival. Memory does not grow with the number of updates, except for a sketch of
    BLOCK fp32 numbers for each. The cosines are computed from these sketches: exactly
    if P <= BLOCK, else within about 1/sqrt(BLOCK) = 0.002 (count sketch, Charikar et
    al. 2002).
    """

    def __init__(self, global_tensors: Tensor, memory: SumMemory | None = None) -> None:
        """Args:
        global_tensors: (P,) fp32 on the CPU, from which the clients started.
        memory: the memory of earlier means. It is used again.
        """
        size = len(global_tensors)
        self._global = global_tensors
        blocks_of_half = ceil(size / (2 * BLOCK))
        self._half = min(size, blocks_of_half * BLOCK)
        self._memory = SumMemory() if memory is None else memory
        self._delta = torch.empty(min(BLOCK, size))
        self._total: float = 0
        self._weights: list[float] = []
        self._norms: list[float] = []
        self._sketches: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(0, 2, (BLOCK,), generator=generator)
        signs = bits.mul_(2).sub_(1).float()
        # Twice, so that every rotation of the signs is a slice.
        self._signs = torch.cat([signs, signs])

    def add(self, trained: Tensor, weight: float) -> None:
        """Add one update. `trained` is (P,) fp32 and not kept; `weight` is positive."""
        assert weight > 0, weight
        norm_squared = 0.0
        sketch = torch.zeros(BLOCK)
        for block, total in self._sums():
            new = trained[block]
            if self._total == 0:
                total.copy_(new).mul_(weight)
            else:
                total.add_(new, alpha=weight)
            delta = self._moved(new, block)
            norm_squared += torch.dot(delta, delta).item()
            # Another rotation in each block makes the signs of blocks independent.
            number = block.start // BLOCK
            turned = BLOCK - number % BLOCK
            signs = self._signs[turned : turned + len(delta)]
            sketch[: len(delta)].addcmul_(delta, signs)
        self._total += weight
        self._weights.append(weight)
        self._norms.append(sqrt(norm_squared))
        self._sketches.append(sketch)

    def finish(self) -> RoundMean:
        """Return the mean of at least one update. Nothing can be added afterwards."""
        assert self._total > 0, "no update was added"
        tensors = self._memory.pieces[0][: len(self._global)]
        norm_squared = 0.0
        for block, total in self._sums():
            # This overwrites sums of this block and of earlier blocks only.
            mean = tensors[block]
            mean.copy_(total / self._total)
            delta = self._moved(mean, block)
            norm_squared += torch.dot(delta, delta).item()
        # The piece with the mean goes last, where the next round does not write.
        self._memory.pieces.append(self._memory.pieces.pop(0))
        mean_norm = sqrt(norm_squared)
        return RoundMean(
            tensors=tensors,
            update_norm=mean_norm,
            weights=tuple(self._weights),
            client_norms=tuple(self._norms),
            cosines_to_mean=tuple(self._cosines_to_mean(mean_norm)),
        )

    def _moved(self, tensors: Tensor, block: slice) -> Tensor:
        """Return a block of tensors minus the global ones, valid until the next call."""
        delta = self._delta[: len(tensors)]
        return torch.sub(tensors, self._global[block], out=delta)

    def _cosines_to_mean(self, mean_norm: float) -> Iterator[float]:
        sketch_sum = torch.zeros(BLOCK)
        for sketch, weight in zip(self._sketches, self._weights, strict=True):
            sketch_sum = sketch_sum + sketch * weight
        mean_sketch = sketch_sum / self._total
        for sketch, norm in zip(self._sketches, self._norms, strict=True):
            product = torch.dot(sketch, mean_sketch).item()
            yield cosine(product, norm * mean_norm)

    def _sums(self) -> Iterator[tuple[slice, Tensor]]:
        """Every block of the tensors, in order, and its fp64 sums."""
        size = len(self._global)
        self._memory.reserve(2 * self._half)
        first_half, second_half, _ = self._memory.pieces
        halves = ((first_half, 0, self._half), (second_half, self._half, size))
        for piece, first, end in halves:
            sums = piece.view(torch.float64)
            for start in range(first, end, BLOCK):
                stop = min(start + BLOCK, end)
                own = slice(start - first, stop - first)
                yield slice(start, stop), sums[own]
