"""Batches of texts: their order, and the parts in which a step is computed to pad little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from wardround.common.data.steps import CUTS, count_steps
from wardround.common.data.tokens import Batch, TokenisedTexts
from wardround.common.settings.train import TrainSettings

if TYPE_CHECKING:
    import torch

# `train.group_by_length` sorts this many batches at a time, as the Hugging Face Trainer does:
# neighbours have similar lengths, and still change from epoch to epoch.
_GROUPED_BATCHES = 50
# Cost of one more forward and backward pass, in tokens of the same time: on the CPU for adding
# gradients, elsewhere for starting kernels.
_PASS_TOKENS = {"cpu": 128}
_PASS_TOKENS_ELSEWHERE = 1024


def training_steps(
    texts: TokenisedTexts,
    indices: np.ndarray,
    settings: TrainSettings,
    order: np.random.Generator,
    device: torch.device,
    *,
    one_width: bool = False,
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each optimiser step of one round, epoch after epoch.

    Args:
        order: draws each epoch's order if shuffling is on.
        one_width: pad every batch to `max_length` tokens, because the model sees padding.
    """
    is_whole = one_width or settings.micro_batches == "none"
    cut = MICRO_BATCHES["none" if is_whole else settings.micro_batches]
    pad_to = None
    # A step is cut only if padding is hidden from attention; its width then changes nothing.
    if one_width or (is_whole and settings.padding == "max_length"):
        pad_to = settings.max_length
    for chosen in _chosen(texts, indices, settings, order):
        micro_batches = cut(texts.lengths_of(chosen), device.type)
        yield [
            texts.batch(
                chosen[rows], pad_to=pad_to, mask=settings.attention_mask, device=device
            )
            for rows in micro_batches
        ]


def _chosen(
    texts: TokenisedTexts,
    indices: np.ndarray,
    settings: TrainSettings,
    order: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Yield the texts of each step, (B,) int64 each."""
    size = settings.batch_size
    num_steps = count_steps(len(indices), settings)
    for _ in range(settings.local_epochs):
        epoch = order.permutation(indices) if settings.shuffle else indices
        if settings.drop_last:
            # Before grouping: otherwise the longest texts would be left out each time.
            epoch = epoch[: num_steps * size]
        if settings.group_by_length:
            epoch = _group_by_length(texts, epoch, size)
        steps = CUTS[settings.last_batch](epoch, size)
        if settings.group_by_length and settings.shuffle:
            steps = [steps[number] for number in order.permutation(len(steps))]
        yield from steps


def _group_by_length(texts: TokenisedTexts, epoch: np.ndarray, size: int) -> np.ndarray:
    """Sort the texts by length within every `_GROUPED_BATCHES` batches."""
    reach = size * _GROUPED_BATCHES
    return np.concatenate(
        [
            by_length(texts, epoch[start : start + reach])
            for start in range(0, len(epoch), reach)
        ]
    )


def by_length(texts: TokenisedTexts, indices: np.ndarray) -> np.ndarray:
    """Return the same indices, shortest texts first, so that little is padded."""
    return indices[np.argsort(texts.lengths_of(indices), kind="stable")]


def _whole(lengths: np.ndarray, device_type: str) -> list[np.ndarray]:
    return [np.arange(len(lengths))]


def _cut_by_length(lengths: np.ndarray, device_type: str) -> list[np.ndarray]:
    """Cut a step so that padded tokens + passes x cost of a pass is least (a shortest path)."""
    price = _PASS_TOKENS.get(device_type, _PASS_TOKENS_ELSEWHERE)
    rows = np.argsort(lengths, kind="stable")
    widths = lengths[rows]
    # best[j] is the least cost of the j shortest texts; its last part starts at cut_before[j].
    best = np.zeros(len(rows) + 1, dtype=np.int64)
    cut_before = np.zeros(len(rows) + 1, dtype=np.int64)
    for end in range(1, len(rows) + 1):
        costs = best[:end] + price + (end - np.arange(end)) * widths[end - 1]
        cut_before[end] = costs.argmin()
        best[end] = costs[cut_before[end]]
    parts = []
    end = len(rows)
    while end > 0:
        parts.append(rows[cut_before[end] : end])
        end = int(cut_before[end])
    return parts[::-1]


MICRO_BATCHES: dict[str, Callable[[np.ndarray, str], list[np.ndarray]]] = {
    "none": _whole,
    "by_length": _cut_by_length,
}


def evaluation_batches(
    texts: TokenisedTexts,
    indices: np.ndarray,
    settings: TrainSettings,
    size: int,
    device: torch.device,
    *,
    one_width: bool = False,
) -> Iterator[Batch]:
    """Yield batches of `size` texts in the order of `indices`, padded and masked as in training.

    Args: one_width: as for `training_steps`.
    """
    # Padding that is hidden from attention changes nothing except the time it takes.
    is_visible = one_width or not settings.attention_mask
    pad_to = settings.max_length if is_visible else None
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        yield texts.batch(
            chosen, pad_to=pad_to, mask=settings.attention_mask, device=device
        )
