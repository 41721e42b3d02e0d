"""Peak memory of groups of processes, in proportional set size: shared pages are counted once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

_PROC = Path("/proc")
_PAUSE = 20


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process; 0 if it has ended or may not be read."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def with_descendants(roots: Iterable[int]) -> set[int]:
    """Return these processes and all living processes that they started."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            # After the name, which ends at the last bracket: state, parent …
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


Look = Callable[[], Iterable[int]]


class PeakMemory:
    """Measures groups of processes again and again, and keeps each group's highest sum. A context.

    A look walks the page tables of large processes, so pauses are at least `_PAUSE` times as long
    as looks: a peak shorter than the pause can be missed.
    """

    def __init__(self, groups: Mapping[str, Look], seconds: float = 0.25) -> None:
        """Args: groups: functions that find processes; seconds: the shortest pause."""
        self._groups, self._seconds = groups, seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peaks: dict[str, int] = dict.fromkeys(groups, 0)
        """Bytes, by group."""

    def reset(self) -> None:
        """Forget the peaks so far."""
        self.peaks = dict.fromkeys(self._groups, 0)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            started = time.perf_counter()
            for name, look in self._groups.items():
                now = sum(pss_bytes(pid) for pid in look())
                self.peaks[name] = max(self.peaks[name], now)
            if self._is_over.wait(
                max(self._seconds, _PAUSE * (time.perf_counter() - started))
            ):
                return
