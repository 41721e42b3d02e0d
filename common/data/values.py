"""One value of a source as a text or an opt-out: the same for every kind of file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from wardround.common.tasks.targets import describe, without_fraction
from wardround.common.words import label_name

_YES = ("true", "1", "yes")
_NO = ("false", "0", "no", "")
_NO_SIGN = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of characters of UTF-16: no text has them, and no tokenizer takes them."""
_REPLACEMENT = "\ufffd"
_LATER_BYTES = bytes(range(0x80, 0xC0)).decode("windows-1252", errors="ignore")
_GARBLED = re.compile(f"[\u00c2\u00c3][{re.escape(_LATER_BYTES)}]")
"""Letters of UTF-8 that were read as windows-1252 before they came into the file."""


def readable(text: str) -> str:
    """Return a text with U+FFFD for every sign that cannot be part of a text."""
    return _NO_SIGN.sub(_REPLACEMENT, text)


def is_garbled(text: str) -> bool:
    """Return whether a text holds letters that were read in a wrong encoding earlier."""
    return _GARBLED.search(text) is not None


def join_texts(parts: Sequence[str | None]) -> str | None:
    """Join the parts that are not blank with one space; return None if all are."""
    return " ".join(part for part in parts if part and not part.isspace()) or None


def as_text(value: Any, column: str, place: str) -> str | None:
    """Return the value of a text column. Raises ValueError if it is neither text nor missing."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    found, step = describe(value)
    raise ValueError(
        f"{place}: column '{column}' holds {found} instead of a text. {step}, or name "
        "another column in data.text_columns."
    )


def as_opt_out(value: Any, column: str, place: str) -> bool:
    """Return whether the value of an opt-out column means yes; a missing one means no.

    Raises:
        ValueError: it is neither a yes nor a no. Nothing is guessed.
    """
    value = without_fraction(value)
    word = "" if value is None else label_name(str(value)).lower()
    if word in _YES:
        return True
    if word in _NO:
        return False
    raise ValueError(
        f"{place}: column '{column}' holds neither a yes ({', '.join(_YES)}) nor a no "
        "(false, 0, no or nothing). Correct it, or name another column in "
        "data.opt_out_column."
    )
