"""Nameless memory that processes of one machine share. It ends with the last process that holds it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np

ArrayTable = list[tuple[str, str, int]]
"""Name, type and length of flat arrays that lie one after the other, each on a 64-byte boundary."""


def create(num_bytes: int) -> int:
    """A file descriptor of fresh memory. It is no file: nothing stays behind, not even after kill -9."""
    fd = os.memfd_create("wardround")
    os.ftruncate(fd, num_bytes)
    return fd


def memory_for(arrays: dict[str, np.ndarray]) -> tuple[int, ArrayTable]:
    """Flat arrays in fresh memory: its descriptor, and what lies in it."""
    fd = create(max(1, table_bytes(table_of(arrays))))
    return fd, write_arrays(bytes_of(fd), arrays)


def bytes_of(fd: int) -> np.ndarray:
    """The memory behind `fd`, (n,) uint8; it stays for as long as the array does."""
    return np.frombuffer(mmap.mmap(fd, 0), dtype=np.uint8)


def write_arrays(memory: np.ndarray, arrays: dict[str, np.ndarray]) -> ArrayTable:
    """Put flat arrays into `memory`, (n,) uint8; what lies there already is not copied."""
    start = 0
    for array in arrays.values():
        place = memory[start : start + array.nbytes]
        if array.nbytes and place.ctypes.data != array.ctypes.data:
            place[:] = array.view(np.uint8)
        start += _aligned(array.nbytes)
    return table_of(arrays)


def table_of(arrays: dict[str, np.ndarray]) -> ArrayTable:
    """What lies in a memory that holds these flat arrays."""
    return [(name, str(array.dtype), len(array)) for name, array in arrays.items()]


def read_arrays(memory: np.ndarray, table: ArrayTable) -> dict[str, np.ndarray]:
    """Inverse of `write_arrays`; the arrays are views."""
    arrays, start = {}, 0
    for name, kind, length in table:
        end = start + length * np.dtype(kind).itemsize
        arrays[name] = memory[start:end].view(kind)
        start = _aligned(end)
    return arrays


def padded_arrays(arrays: dict[str, np.ndarray]) -> Iterator[memoryview | bytes]:
    """The bytes of flat arrays as `read_arrays` reads them, piece by piece."""
    for array in arrays.values():
        yield array.view(np.uint8).data
        yield bytes(_aligned(array.nbytes) - array.nbytes)


def table_bytes(table: ArrayTable) -> int:
    """Of the memory that what a table lists takes."""
    return sum(_aligned(length * np.dtype(kind).itemsize) for _, kind, length in table)


def _aligned(num_bytes: int) -> int:
    """So many bytes, up to the next boundary."""
    return -(-num_bytes // 64) * 64
