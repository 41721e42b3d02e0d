"""Kinds of values that several settings share, and the check that refuses a value."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from wardround.common.words import label_name

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""The root of random streams."""
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""The longest time that something may take."""
LabelName = Annotated[str, AfterValidator(label_name)]
"""Name of a label in its one spelling: the labels of files are read in the same way."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def file_name(text: str) -> str:
    """The last part of a path, with every character replaced that a file name should not have."""
    last_part = text.rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._]+", "_", last_part).strip("._")
    return name or "unnamed"
