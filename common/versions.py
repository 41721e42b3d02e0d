"""Versions of Wardround that work together: site and server may differ by one minor version."""

from __future__ import annotations

import re
from importlib.metadata import version

NAME = "wardround"
PACKAGES = (NAME, "flwr", "torch", "transformers")
"""Packages whose versions are compared between coordinator and sites."""
_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.|$)")


def installed() -> str:
    """Return the version that is installed here."""
    return version(NAME)


def work_together(one: str, other: str) -> bool:
    """Return whether two versions are at most one minor version apart, such as 0.2.1 and 0.3.0."""
    first = _NUMBER.match(one)
    second = _NUMBER.match(other)
    if first is None or second is None:
        return one == other
    distance = int(first[2]) - int(second[2])
    return first[1] == second[1] and abs(distance) <= 1


def advice(theirs: str) -> str:
    """Explain to people here that the coordinator's version does not work with this one."""
    return (
        f"the coordinator runs wardround {theirs}, which does not work with {installed()} here. "
        f"Install the same version here: pip install 'wardround=={theirs}'"
    )
