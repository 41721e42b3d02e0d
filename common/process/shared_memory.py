"""Nameless shared memory. It is gone with the last process that holds it."""

from __future__ import annotations

import mmap
import os

import numpy as np

from wardround.common.wire.flat_arrays import (
    ArrayTable,
    table_bytes,
    table_of,
    write_arrays,
)


def create_memory(num_bytes: int) -> int:
    """Return a file descriptor of fresh memory.

    There is no file: nothing stays behind, even after `kill -9`.
    """
    descriptor = os.memfd_create("wardround")
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def bytes_of(descriptor: int) -> np.ndarray:
    """Return the memory behind a descriptor, (n,) uint8.

    The memory stays as long as the array does.
    """
    memory = mmap.mmap(descriptor, 0)
    return np.frombuffer(memory, dtype=np.uint8)


def memory_for(arrays: dict[str, np.ndarray]) -> tuple[int, ArrayTable]:
    """Write flat arrays into fresh memory. Return its descriptor and its table."""
    num_bytes = table_bytes(table_of(arrays))
    descriptor = create_memory(max(1, num_bytes))
    table = write_arrays(bytes_of(descriptor), arrays)
    return descriptor, table
