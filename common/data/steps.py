"""How the texts of an epoch are cut into optimiser steps. It needs no torch: plans are judged with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wardround.common.settings.train import TrainSettings


def count_steps(num_examples: int, settings: TrainSettings) -> int:
    """Optimiser steps of one epoch. Raises ValueError if `drop_last` leaves no step."""
    if settings.last_batch == "even":
        return max(1, num_examples // settings.batch_size)
    if not settings.drop_last:
        return -(-num_examples // settings.batch_size)
    if num_examples < settings.batch_size:
        raise ValueError(
            f"train.drop_last=true with train.batch_size={settings.batch_size}, but a client has only "
            f"{num_examples} examples: no batch is left. Lower num_clients or train.batch_size, or set "
            "train.drop_last=false."
        )
    return num_examples // settings.batch_size


def _cut_short(epoch: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of `size`; the last one holds the rest."""
    return [epoch[start : start + size] for start in range(0, len(epoch), size)]


def _cut_evenly(epoch: np.ndarray, size: int) -> list[np.ndarray]:
    """max(1, n // size) batches whose sizes differ by one at most, so that none is smaller than `size`."""
    return np.array_split(epoch, max(1, len(epoch) // size))


CUTS: dict[str, Callable[[np.ndarray, int], list[np.ndarray]]] = {
    "short": _cut_short,
    "even": _cut_evenly,
}
"""By `train.last_batch`: the batches of an epoch, (b,) int64 each, from its texts in their order, (n,)."""
