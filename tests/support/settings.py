"""The options of a group of conf/."""

from __future__ import annotations

from wardround.common.places import CONF


def options(group: str) -> list[str]:
    """Names of a group's files, as the command line takes them."""
    return sorted(
        file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "base"
    )
