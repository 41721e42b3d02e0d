"""The options of a group of conf/."""

from __future__ import annotations

from wardround.common.places import CONF


def options(group: str) -> list[str]:
    """Return the options of a group on the command line: the names of its files."""
    names = {file.stem for file in (CONF / group).glob("*.yaml")}
    return sorted(names - {"base"})
