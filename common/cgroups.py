"""Limits of the control groups of this process: a container, a systemd unit, a batch job.

Both versions of control groups are read. A limit of any enclosing group counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """Return how many CPUs this process may keep busy; None without a limit."""
    quotas = []
    for folder in _groups(""):
        limit, _, period = _text(folder / "cpu.max").partition(" ")
        quotas.append(_ratio(limit, period))
    for folder in _groups("cpu"):
        limit = _text(folder / "cpu.cfs_quota_us")
        quotas.append(_ratio(limit, _text(folder / "cpu.cfs_period_us")))
    known = [quota for quota in quotas if quota is not None]
    return min(known, default=None)


def memory_left() -> int | None:
    """Return the bytes that this process may still use; None without a limit.

    Cached copies of files do not count as used: the kernel gives them up when memory is needed.
    """
    left = []
    for folder in _groups(""):
        limit = _text(folder / "memory.max")
        used = _text(folder / "memory.current")
        left.append(_left(limit, used, _text(folder / "memory.stat"), ""))
    for folder in _groups("memory"):
        limit = _text(folder / "memory.limit_in_bytes")
        used = _text(folder / "memory.usage_in_bytes")
        left.append(_left(limit, used, _text(folder / "memory.stat"), "total_"))
    known = [amount for amount in left if amount is not None]
    return min(known, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of all that enclose it.

    Args:
        controller: of version 1; empty for version 2.
    """
    for line in _text(_OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        root = _ROOT / controllers
        own = root / path.lstrip("/")
        # Inside a container the path may be that of the host, which does not exist here.
        yield from (folder for folder in (own, *own.parents) if root in folder.parents)
        yield root


def _ratio(limit: str, period: str) -> float | None:
    """Return quota over period; None for `max`, -1 and files that do not exist."""
    if not limit.isdigit() or not period.isdigit():
        return None
    return int(limit) / int(period)


def _left(limit: str, used: str, statistics: str, prefix: str) -> int | None:
    if not limit.isdigit() or not used.isdigit():
        return None
    amounts = dict(line.split() for line in statistics.splitlines())
    cached = sum(
        int(amounts.get(f"{prefix}{kind}", 0))
        for kind in ("active_file", "inactive_file")
    )
    return int(limit) - int(used) + cached


def _text(file: Path) -> str:
    """Return the text of a small file; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
