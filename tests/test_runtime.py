"""The machine under a run: memory that is used again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
import numpy as np
from wardround.common.runtime import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill_blocks(count):
    before = faults()
    for _ in range(count):
        np.empty(48 << 20, np.uint8).fill(1)
    return faults() - before

fresh = fill_blocks(10)
keep_freed_memory()
fill_blocks(1)
print(fresh, fill_blocks(10))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt"
)
def test_freed_blocks_are_used_again() -> None:
    """Ten blocks of 48 MiB, one after the other: with kept memory, few pages fault."""
    run = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    fresh, kept = map(int, run.stdout.split())
    assert kept < 100 < fresh
