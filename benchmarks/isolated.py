"""Run a function in its own process, and measure its peak memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

from benchmarks.memory import PeakMemory, with_descendants

P = ParamSpec("P")
T = TypeVar("T")


def isolated(
    function: Callable[P, T], *given: P.args, **named: P.kwargs
) -> tuple[T, int]:
    """Call `function` in a fresh interpreter. Return its result and the peak PSS."""
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        pid = pool.submit(_pid).result()
        with PeakMemory(
            {"all": lambda: with_descendants([pid])}, seconds=0.1
        ) as memory:
            result = pool.submit(function, *given, **named).result()
        return result, memory.peaks["all"]


def _pid() -> int:
    return multiprocessing.current_process().pid or 0
