"""The cut of an epoch into optimiser steps. Plans are judged with it, so it needs no torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wardround.common.settings.train import TrainSettings


def count_steps(num_examples: int, settings: TrainSettings) -> int:
    """Return the optimiser steps of one epoch. Raises ValueError if `drop_last` leaves none."""
    if settings.last_batch == "even":
        return max(1, num_examples // settings.batch_size)
    if not settings.drop_last:
        return -(-num_examples // settings.batch_size)
    if num_examples < settings.batch_size:
        raise ValueError(
            f"train.drop_last=true with train.batch_size={settings.batch_size}, but a "
            f"client has only {num_examples} examples: no batch is left. Lower "
            "num_clients or train.batch_size, or set train.drop_last=false."
        )
    return num_examples // settings.batch_size


def _cut_short(epoch: np.ndarray, size: int) -> list[np.ndarray]:
    """Return batches of `size`; the last one holds the rest."""
    return [epoch[start : start + size] for start in range(0, len(epoch), size)]


def _cut_evenly(epoch: np.ndarray, size: int) -> list[np.ndarray]:
    """Return max(1, n // size) batches; sizes differ by one at most, and reach `size` if n does."""
    return np.array_split(epoch, max(1, len(epoch) // size))


CUTS: dict[str, Callable[[np.ndarray, int], list[np.ndarray]]] = {
    "short": _cut_short,
    "even": _cut_evenly,
}
"""By `train.last_batch`: cuts the texts of an epoch, (n,) int64, into batches, (b,) each."""
