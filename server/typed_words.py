"""Words of a command line, rewritten so that Hydra reads their texts as they were typed.

Hydra's grammar gives a meaning to `~`, brackets, letters outside ASCII and words such as `1E50` or
`true`. A setting that is a text has no use for these meanings: its value is quoted here. Numbers,
groups and Hydra's own keys stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from wardround.common.settings.tree import text_depths

_SWEEP_FUNCTION = re.compile(
    r"(choice|range|interval|glob|sort|shuffle|tag|str)\(.*\)$"
)
_OPENING = "[{("
_CLOSING = "]})"
_QUOTES = "\"'"


def as_typed(words: Iterable[str]) -> list[str]:
    """Return the words with quotes around each value of a text setting.

    Not quoted are `null`, a value that has quotes already, an interpolation (`${...}`) and a
    function of Hydra's sweeps. A comma outside of quotes and brackets separates several values.
    """
    return [_rewritten(word) for word in words]


def hydra_text(text: str) -> str:
    """Return the text in double quotes, as Hydra's grammar wants it."""
    # A backslash is an escape only before a quote and at the end.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f'"{escaped}"'


def _rewritten(word: str) -> str:
    key, equals, value = word.partition("=")
    depth = text_depths().get(key.lstrip("+"))
    if not equals or depth is None or _SWEEP_FUNCTION.match(value):
        return word
    if value != value.strip():
        return word  # the parser explains spaces around =
    try:
        choices = [_as_text(choice, depth) for choice in _split(value)]
    except ValueError:
        return word  # the parser explains a quote that is not closed
    return f"{key}={','.join(choices)}"


def _as_text(value: str, depth: int) -> str:
    """Quote a text, or every text in a list of `depth` brackets."""
    bare = value.strip()
    if bare in ("", "null") or "${" in bare or _is_quoted(bare):
        return bare
    if depth == 0:
        return hydra_text(bare)
    if not (bare.startswith("[") and bare.endswith("]")):
        return bare  # the settings explain that it must be a list
    parts = [_as_text(part, depth - 1) for part in _split(bare[1:-1])]
    return f"[{', '.join(parts)}]"


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in _QUOTES and value[-1] == value[0]


def _split(value: str) -> list[str]:
    """Split at the commas that stand outside of quotes and brackets.

    Raises:
        ValueError: a quote is not closed.
    """
    parts = [""]
    depth = 0
    quote = ""
    for position, letter in enumerate(value):
        if letter == "," and depth == 0 and not quote:
            parts.append("")
            continue
        parts[-1] += letter
        if quote:
            is_escaped = value[position - 1] == "\\"
            if letter == quote and not is_escaped:
                quote = ""
        elif letter in _QUOTES and not parts[-1][:-1].strip(" [{("):
            quote = letter  # a quote within a word is an apostrophe
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth = max(0, depth - 1)
    if quote:
        raise ValueError(f"{quote} is not closed in {value}")
    return parts
