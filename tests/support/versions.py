"""Versions at a distance from the installed one."""

from __future__ import annotations

from wardround.common.versions import installed


def later(steps: int) -> str:
    """The version that many minor versions later: 0.3.0 is 2 later than 0.1.0."""
    major, minor = installed().split(".")[:2]
    return f"{major}.{int(minor) + steps}.0"
