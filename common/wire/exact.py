"""A lossless form: how far each number moved, counted in steps of fp32, in as few bytes as that takes.

Two fp32 numbers that are near each other have bit patterns that differ by a small whole number. What a
round of fine-tuning moves is mostly less than 32,768 such steps, which is two bytes instead of four.
"""

from __future__ import annotations

import numpy as np

# Elements that share a width: temporaries stay in the processor's cache.
_BLOCK = 1 << 16
_WIDTHS = (1, 2, 3, 4)


def encode(
    tensors: np.ndarray, base: np.ndarray, residual: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The difference between two (P,) fp32 arrays' bit patterns, as three flat arrays.

    Args:
        residual: nothing is lost, so nothing is carried over.

    Returns:
        widths: (blocks,) uint8, bytes per step in each block.
        steps: uint8, the steps' low bytes, block after block; the lowest number of a width is an escape.
        others: int32, the steps that were escaped, in order.
    """
    new, old = tensors.view(np.int32), base.view(np.int32)
    starts = range(0, len(new), _BLOCK)
    widths = np.empty(len(starts), dtype=np.uint8)
    written = np.empty(
        4 * len(new), dtype=np.uint8
    )  # what is not reached is never made room for
    others: list[np.ndarray] = []
    end = 0
    for number, start in enumerate(starts):
        steps = (
            new[start : start + _BLOCK] - old[start : start + _BLOCK]
        )  # wraps, and so does the way back
        sizes = np.abs(steps).view(
            np.uint32
        )  # the lowest int32, which has no opposite, is right as well
        width, has_others = _narrowest(sizes)
        if has_others:
            is_other = sizes >= _bound(width)
            others.append(steps[is_other])
            steps[is_other] = -_bound(width)
        low = _lowest_bytes(steps, width)
        written[end : end + len(low)] = low
        widths[number], end = width, end + len(low)
    return {
        "widths": widths,
        "steps": written[:end],
        "others": np.concatenate([np.empty(0, dtype=np.int32), *others]),
    }


def _narrowest(sizes: np.ndarray) -> tuple[int, bool]:
    """The width that takes the fewest bytes, the first of several; and whether some do not fit it."""
    best, least, some_left = 0, 0, False
    for width in _WIDTHS:
        num_others = 0 if width == 4 else int(np.count_nonzero(sizes >= _bound(width)))
        cost = width * len(sizes) + 4 * num_others
        if not best or cost < least:
            best, least, some_left = width, cost, num_others > 0
        if least <= (width + 1) * len(sizes):  # no wider one can take less
            break
    return best, some_left


def _bound(width: int) -> int:
    """Steps of this size and more do not fit; its opposite is the escape."""
    return 1 << (8 * width - 1)


def _lowest_bytes(steps: np.ndarray, width: int) -> np.ndarray:
    """(n,) int32 as (n * width,) uint8, lowest byte first."""
    if width == 3:
        return (
            steps.astype("<i4", copy=False)
            .view(np.uint8)
            .reshape(-1, 4)[:, :3]
            .reshape(-1)
        )
    return steps.astype(f"<i{width}", copy=False).view(np.uint8)


def decode(arrays: dict[str, np.ndarray], base: np.ndarray, out: np.ndarray) -> None:
    """Inverse of `encode`, into `out`, (P,) fp32.

    Raises:
        KeyError or ValueError: the arrays do not fit `base`.
    """
    widths, written, others = (arrays[name] for name in ("widths", "steps", "others"))
    old, new = base.view(np.int32), out.view(np.int32)
    starts = range(0, len(old), _BLOCK)
    is_ours = [array.dtype.str for array in (widths, written, others)] == [
        "|u1",
        "|u1",
        "<i4",
    ]
    if not is_ours or len(widths) != len(starts) or not np.isin(widths, _WIDTHS).all():
        raise ValueError("its steps do not have the sizes of the global model")
    end = num_others = 0
    for width, start in zip(widths.tolist(), starts, strict=True):
        before = old[start : start + _BLOCK]
        low = written[end : end + width * len(before)]
        steps, end = _as_numbers(low, width), end + len(low)
        is_other = steps == -_bound(
            width
        )  # of the narrow numbers, which takes less time
        count = int(np.count_nonzero(is_other)) if width < 4 else 0
        steps = steps.astype(np.int32, copy=count > 0)
        if count:
            steps[is_other] = others[num_others : num_others + count]
            num_others += count
        np.add(before, steps, out=new[start : start + _BLOCK])
    if end != len(written) or num_others != len(others):
        raise ValueError("its steps do not have the sizes of the global model")


def _as_numbers(low: np.ndarray, width: int) -> np.ndarray:
    """Inverse of `_lowest_bytes`, of the narrowest integers that hold them."""
    if width == 3:
        wide = np.zeros((len(low) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = low.reshape(-1, 3)
        return wide.view("<i4")[:, 0] >> 8
    return low.view(f"<i{width}")
