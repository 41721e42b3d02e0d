"""Flat arrays that lie one after the other, each on a 64-byte boundary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_ALIGNMENT = 64

ArrayTable = list[tuple[str, str, int]]
"""Name, type and number of elements of each array, in order."""


def table_of(arrays: dict[str, np.ndarray]) -> ArrayTable:
    """Return the table of these flat arrays."""
    return [(name, str(array.dtype), len(array)) for name, array in arrays.items()]


def table_bytes(table: ArrayTable) -> int:
    """Return the number of bytes that the arrays of a table need."""
    sizes = [length * np.dtype(kind).itemsize for _, kind, length in table]
    return sum(map(aligned, sizes))


def write_arrays(memory: np.ndarray, arrays: dict[str, np.ndarray]) -> ArrayTable:
    """Write flat arrays into `memory`, (n,) uint8, and return their table.

    An array that already lies in its place is not copied.
    """
    start = 0
    for array in arrays.values():
        place = memory[start : start + array.nbytes]
        if array.nbytes and place.ctypes.data != array.ctypes.data:
            place[:] = array.view(np.uint8)
        start += aligned(array.nbytes)
    return table_of(arrays)


def read_arrays(memory: np.ndarray, table: ArrayTable) -> dict[str, np.ndarray]:
    """Inverse of `write_arrays`; the arrays are views of `memory`."""
    arrays = {}
    start = 0
    for name, kind, length in table:
        end = start + length * np.dtype(kind).itemsize
        arrays[name] = memory[start:end].view(kind)
        start = aligned(end)
    return arrays


def padded_arrays(arrays: dict[str, np.ndarray]) -> Iterator[memoryview | bytes]:
    """Yield the bytes of flat arrays, piece by piece, as `read_arrays` reads them."""
    for array in arrays.values():
        yield array.view(np.uint8).data
        gap = aligned(array.nbytes) - array.nbytes
        yield bytes(gap)


def aligned(num_bytes: int) -> int:
    """Return the next boundary: the smallest multiple of 64 that is not below `num_bytes`."""
    num_blocks = -(-num_bytes // _ALIGNMENT)
    return num_blocks * _ALIGNMENT
