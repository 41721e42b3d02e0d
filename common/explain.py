"""Errors of others, in words that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from wardround.common.words import cleaned, printable

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_TYPE_IN_PLACE = re.compile(r"constrained-|literal\[|tuple\[")
"""pydantic adds the type that it tried to the key."""
_MOST_NEAREST = 3


def explain(
    error: ValidationError,
    known: Iterable[str] = (),
    steps: Mapping[str, str] | None = None,
) -> str:
    """Describe pydantic's findings, one line each: dotted key, value, rule and next step.

    Args:
        known: the valid keys, to suggest the nearest one for an unknown key.
        steps: next steps by dotted key, by pydantic's type of error (such as `missing`), or by
            both, separated by a space. Both together win over the type of error, which wins over
            the key.
    """
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        key = _dotted_key(item)
        kind = item["type"]
        names = (f"{key} {kind}", kind, key)
        step = next((steps[name] for name in names if steps and name in steps), "")
        line = _line(item, key, known, has_step=bool(step))
        lines.setdefault(key, f"{line} {step}" if step else line)
    return "\n".join(lines.values())


def _dotted_key(item: ErrorDetails) -> str:
    parts = [str(part) for part in item["loc"]]
    return ".".join(p for p in parts if not _TYPE_IN_PLACE.match(p)) or "the whole"


def _line(item: ErrorDetails, key: str, known: Iterable[str], *, has_step: bool) -> str:
    value = item["input"]
    match item["type"]:
        case "value_error":  # a whole sentence, about several keys
            return item["msg"].removeprefix("Value error, ")
        case "missing":
            return f"{key} is missing."
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{key} is {value!r}, but there is no such key.{nearest(key, known)}"
        case "string_pattern_mismatch" if has_step:  # the step explains the pattern
            return f"{key} is {value!r}."
        case "tuple_type":
            return f"{key} is {value!r}; it must be a list. Write for example [a, b]."
    rule = re.sub(r"^.* should ", "it must ", item["msg"])
    return f"{key} is {value!r}; {rule}."


def nearest(word: str, names: Iterable[str]) -> str:
    """Return ` Nearest: 'x', 'y'.` for up to three similar names, or an empty text."""
    return nearest_in_words(similar(word, names))


def nearest_in_words(names: Sequence[str]) -> str:
    """Return ` Nearest: 'x', 'y'.` for the first three names, or an empty text."""
    found = ", ".join(f"'{printable(name)}'" for name in names[:_MOST_NEAREST])
    return f" Nearest: {found}." if found else ""


def similar(word: str, names: Iterable[str]) -> list[str]:
    """Return names that look like a word, the most similar ones first.

    Names are compared as a whole and by the part after their last dot. Names with the same part
    keep their order.
    """
    by_part: dict[str, list[str]] = {}
    for name in names:
        last_part = name.rsplit(".", 1)[-1]
        for part in {name.lower(), last_part.lower()}:
            by_part.setdefault(part, []).append(name)
    close = get_close_matches(word.lower(), by_part)
    return list(dict.fromkeys(name for part in close for name in by_part[part]))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has no text.

    The text may repeat a foreign file, so characters that move a cursor are removed.
    """
    lines = str(error).strip().splitlines()
    return cleaned(lines[0] if lines else type(error).__name__)
