"""Versions of Wardround that work together: a site may be one minor version behind the server, or ahead."""

from __future__ import annotations

import re
from importlib.metadata import version

NAME = "wardround"
PACKAGES = (NAME, "flwr", "torch", "transformers")
"""Packages whose versions are compared between coordinator and sites."""
_NUMBER = re.compile(r"(\d+)\.(\d+)(?:\.|$)")


def installed() -> str:
    """The version that runs here."""
    return version(NAME)


def work_together(one: str, other: str) -> bool:
    """Whether two versions are at most one minor version apart, such as 0.2.1 and 0.3.0."""
    found = _NUMBER.match(one), _NUMBER.match(other)
    if None in found:
        return one == other
    (major, minor), (other_major, other_minor) = (
        match.groups() for match in found if match
    )
    return major == other_major and abs(int(minor) - int(other_minor)) <= 1


def advice(theirs: str) -> str:
    """For people here, if the coordinator's version does not work with this one: why, and the next step."""
    return (
        f"the coordinator runs wardround {theirs}, and here is {installed()}, which does not work with it. "
        f"Install the same version here: pip install 'wardround=={theirs}'"
    )
