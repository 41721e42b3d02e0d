"""The machine under a run: memory that is used again."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from wardround.common import runtime
from wardround.common.runtime import available_memory

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


def test_copies_of_files_count_as_free_in_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = available_memory()
    assert whole is not None
    monkeypatch.setattr(runtime, "_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "memory.stat").write_text(
        "anon 500\nactive_file 200\ninactive_file 250\n"
    )
    assert available_memory() == 460
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == pytest.approx(whole, rel=0.5)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt"
)
def test_freed_blocks_are_used_again() -> None:
    """Ten blocks of 48 MiB, one after the other, fault in 4 KiB pages only once memory is kept."""
    run = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    fresh, kept = map(int, run.stdout.split())
    assert kept < 100 < fresh
