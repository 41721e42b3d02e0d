"""A lossless form: the distance of each number from its base, counted in steps of fp32.

The bit patterns of two near fp32 numbers differ by a small whole number. A round of fine-tuning
moves most numbers by less than 32,768 such steps, which takes two bytes instead of four.
"""

from __future__ import annotations

import numpy as np

# Elements that share a width: temporary arrays fit into the processor's cache.
_BLOCK = 1 << 16
_WIDTHS = (1, 2, 3, 4)


def encode(
    tensors: np.ndarray, base: np.ndarray, residual: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the difference between the bit patterns of two (P,) fp32 arrays, as three flat arrays.

    Args:
        residual: unused, because nothing is lost.

    Returns:
        widths: (blocks,) uint8, bytes per step in each block.
        steps: uint8, the low bytes of the steps, block after block. The lowest number that a
            width can hold is the mark of a step that does not fit.
        others: int32, the steps that do not fit, in order.
    """
    new = tensors.view(np.int32)
    old = base.view(np.int32)
    starts = range(0, len(new), _BLOCK)
    widths = np.empty(len(starts), dtype=np.uint8)
    # The system reserves only the part of this memory that is written.
    written = np.empty(4 * len(new), dtype=np.uint8)
    others: list[np.ndarray] = []
    end = 0
    for number, start in enumerate(starts):
        block = slice(start, start + _BLOCK)
        # The difference wraps around, and decoding wraps back.
        steps = new[block] - old[block]
        # The lowest int32 has no opposite; as uint32 its size is right as well.
        sizes = np.abs(steps).view(np.uint32)
        width, has_others = _narrowest(sizes)
        if has_others:
            is_other = sizes >= _bound(width)
            others.append(steps[is_other])
            steps[is_other] = -_bound(width)
        low = _lowest_bytes(steps, width)
        written[end : end + len(low)] = low
        widths[number] = width
        end += len(low)
    no_others = np.empty(0, dtype=np.int32)
    return {
        "widths": widths,
        "steps": written[:end],
        "others": np.concatenate([no_others, *others]),
    }


def _narrowest(sizes: np.ndarray) -> tuple[int, bool]:
    """Return the width that takes the fewest bytes, and whether some steps do not fit into it."""
    best = 0
    least = 0
    some_left = False
    for width in _WIDTHS:
        num_others = 0
        if width < 4:
            num_others = int(np.count_nonzero(sizes >= _bound(width)))
        cost = width * len(sizes) + 4 * num_others
        if not best or cost < least:
            best = width
            least = cost
            some_left = num_others > 0
        if least <= (width + 1) * len(sizes):  # no wider one takes less
            break
    return best, some_left


def _bound(width: int) -> int:
    """Return the smallest step that does not fit into `width` bytes. Its negative is the mark."""
    return 1 << (8 * width - 1)


def _lowest_bytes(steps: np.ndarray, width: int) -> np.ndarray:
    """Return (n,) int32 as (n * width,) uint8, lowest byte first."""
    if width == 3:
        whole = steps.astype("<i4", copy=False).view(np.uint8)
        return whole.reshape(-1, 4)[:, :3].reshape(-1)
    return steps.astype(f"<i{width}", copy=False).view(np.uint8)


def decode(arrays: dict[str, np.ndarray], base: np.ndarray, out: np.ndarray) -> None:
    """Inverse of `encode`, into `out`, (P,) fp32.

    Raises:
        KeyError or ValueError: the arrays do not fit `base`.
    """
    widths = arrays["widths"]
    written = arrays["steps"]
    others = arrays["others"]
    old = base.view(np.int32)
    new = out.view(np.int32)
    starts = range(0, len(old), _BLOCK)
    types = [array.dtype.str for array in (widths, written, others)]
    has_types = types == ["|u1", "|u1", "<i4"]
    has_blocks = len(widths) == len(starts)
    if not has_types or not has_blocks or not np.isin(widths, _WIDTHS).all():
        raise ValueError("its steps do not have the sizes of the global model")
    end = 0
    num_others = 0
    for width, start in zip(widths.tolist(), starts, strict=True):
        block = slice(start, start + _BLOCK)
        before = old[block]
        low = written[end : end + width * len(before)]
        end += len(low)
        steps = _as_numbers(low, width)
        # Compared before they are widened, which takes less time.
        is_other = steps == -_bound(width)
        count = int(np.count_nonzero(is_other)) if width < 4 else 0
        steps = steps.astype(np.int32, copy=count > 0)
        if count:
            steps[is_other] = others[num_others : num_others + count]
            num_others += count
        np.add(before, steps, out=new[block])
    if end != len(written) or num_others != len(others):
        raise ValueError("its steps do not have the sizes of the global model")


def _as_numbers(low: np.ndarray, width: int) -> np.ndarray:
    """Inverse of `_lowest_bytes`, in the narrowest integers that hold the steps."""
    if width == 3:
        wide = np.zeros((len(low) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = low.reshape(-1, 3)
        return wide.view("<i4")[:, 0] >> 8
    return low.view(f"<i{width}")
