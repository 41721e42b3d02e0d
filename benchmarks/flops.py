"""The highest speed of this machine in multiplying matrices."""

from __future__ import annotations

import time

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SECONDS = 1.5


def peak_flops(
    precision: str, device: str, threads: int, *, is_quick: bool = False
) -> float:
    """Return floating-point operations a second of a large matrix product, best of many."""
    torch.set_num_threads(threads)
    side = 256 if is_quick else 2048 if device == "cpu" else 8192
    left = torch.randn(side, side, device=device).to(_DTYPES[precision])
    right, out = left.t().contiguous(), torch.empty_like(left)
    best = float("inf")
    deadline = time.perf_counter() + (0.05 if is_quick else _SECONDS)
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
