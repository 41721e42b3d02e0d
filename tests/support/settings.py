"""Settings as plain keys, and the options of a group of conf/."""

from __future__ import annotations

from typing import Any

from common.settings import Settings
from server.compose import CONF


def flat(settings: Settings) -> dict[str, Any]:
    """`group.key` -> value."""
    values: dict[str, Any] = {}
    for key, value in settings.to_dict().items():
        values |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {}
        values |= {} if isinstance(value, dict) else {key: value}
    return values


def options(group: str) -> list[str]:
    """Names of a group's files, as the command line takes them."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if file.stem != "base")
