"""Lossy forms: the delta (trained - base) in fewer bits. The loss can be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_BLOCK = 1 << 16
GROUP = 1 << 12
"""Number of neighbouring elements that share a scale."""
_MOST_INT8 = np.float32(127)
_HALF = np.uint32(16)
"""Half of the bits of fp32."""


@dataclass(frozen=True)
class Rounding:
    """A lossy form: one row of the table."""

    dtype: np.dtype
    """Type of `values`, (P,)."""
    round: Callable[[np.ndarray], np.ndarray]
    """Turns fp32 into the nearest `values`. With scales, the input is the delta divided by them."""
    restore: Callable[[np.ndarray], np.ndarray]
    """Turns `values` back into fp32."""
    scale: Callable[[np.ndarray], np.ndarray] | None = None
    """Turns each group's largest absolute value into its divisor, fp32; None for no scales."""


def _to_bf16(delta: np.ndarray) -> np.ndarray:
    """Round to the upper half of fp32, ties to even."""
    bits = delta.view(np.uint32)
    lowest_kept_bit = (bits >> _HALF) & np.uint32(1)
    carried = bits + np.uint32(0x7FFF) + lowest_kept_bit
    return (carried >> _HALF).astype(np.uint16)


def _from_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.uint32) << _HALF
    return bits.view(np.float32)


def _power_of_two(largest: np.ndarray) -> np.ndarray:
    """Return a power of two. So the division is exact, and small deltas keep all 11 bits."""
    _, exponents = np.frexp(largest)
    bounded = np.clip(exponents, -120, 120)
    scales: np.ndarray = np.ldexp(np.float32(1), bounded)
    return scales


def _share_of_int8(largest: np.ndarray) -> np.ndarray:
    smallest = np.finfo(np.float32).tiny
    scales: np.ndarray = np.maximum(largest / _MOST_INT8, smallest)
    return scales


ROUNDINGS: dict[str, Rounding] = {
    # bfloat16 has no NumPy type; its bits travel as uint16.
    "bf16": Rounding(np.dtype(np.uint16), _to_bf16, _from_bf16),
    "fp16": Rounding(
        np.dtype(np.float16),
        lambda delta: delta.astype(np.float16),
        lambda values: values.astype(np.float32),
        _power_of_two,
    ),
    "int8": Rounding(
        np.dtype(np.int8),
        lambda delta: np.rint(delta).astype(np.int8),
        lambda values: values.astype(np.float32),
        _share_of_int8,
    ),
}


def encode(
    row: Rounding, tensors: np.ndarray, base: np.ndarray, residual: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Round the delta of two (P,) fp32 arrays.

    Args:
        residual: (P,) fp32; added to the delta, and then set to the loss of rounding. None drops
            the loss.

    Returns:
        values: (P,) in the row's type.
        scales: (ceil(P / GROUP),) fp32, if the row has scales.

    Raises:
        ArithmeticError: a delta is not finite; fewer bits could hide that.
    """
    size = len(tensors)
    values = np.empty(size, dtype=row.dtype)
    scales = np.empty(_num_groups(size), dtype=np.float32)
    for block in _blocks(size):
        delta = tensors[block] - base[block]
        if residual is not None:
            delta += residual[block]
        if not np.isfinite(delta).all():
            raise ArithmeticError("the trained tensors hold values that are not finite")
        scaled = delta
        divisor: np.ndarray | np.float32 = np.float32(1)
        if row.scale is not None:
            own = scales[_groups(block)]
            own[:] = row.scale(_largest_of_groups(delta))
            divisor = _spread(own, len(delta))
            scaled = delta / divisor
        values[block] = row.round(scaled)
        if residual is not None:
            restored = row.restore(values[block])
            residual[block] = delta - restored * divisor
    if row.scale is None:
        return {"values": values}
    return {"values": values, "scales": scales}


def decode(
    row: Rounding, arrays: dict[str, np.ndarray], base: np.ndarray, out: np.ndarray
) -> None:
    """Write base + delta into `out`, (P,) fp32.

    Raises:
        KeyError or ValueError: the arrays do not fit `base`.
    """
    size = len(base)
    values = arrays["values"]
    if values.dtype != row.dtype or values.shape != (size,):
        raise ValueError("its values do not have the size and type of the global model")
    if row.scale is not None:
        scales = arrays["scales"]
        if scales.dtype != np.float32 or scales.shape != (_num_groups(size),):
            raise ValueError("its scales do not have the size of the global model")
    for block in _blocks(size):
        delta = row.restore(values[block])
        if row.scale is not None:
            delta *= _spread(scales[_groups(block)], len(delta))
        np.add(base[block], delta, out=out[block])


def _blocks(size: int) -> list[slice]:
    starts = range(0, size, _BLOCK)
    return [slice(start, min(start + _BLOCK, size)) for start in starts]


def _num_groups(size: int) -> int:
    """Return the number of groups of `size` elements; the last one may be smaller."""
    return -(-size // GROUP)


def _groups(block: slice) -> slice:
    """Return the positions of a block's scales."""
    return slice(block.start // GROUP, _num_groups(block.stop))


def _largest_of_groups(delta: np.ndarray) -> np.ndarray:
    """Return the largest absolute value of each group."""
    starts = range(0, len(delta), GROUP)
    return np.maximum.reduceat(np.abs(delta), starts)


def _spread(scales: np.ndarray, size: int) -> np.ndarray:
    """Return a scale for each of `size` elements."""
    return np.repeat(scales, GROUP)[:size]
