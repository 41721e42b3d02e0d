"""Values, names, sizes and times in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from wardround.common.words import shown

LONGEST_RULE = 600
"""Letters of a policy's rule that are shown."""
MOST_NAMES = 8
"""Names that a list shows."""


def value_in_words(value: object) -> str:
    """Return a setting's value as settings files write it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return names_in_words(map(str, value)) or "()"
    return shown(str(value))


def names_in_words(words: Iterable[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    names = list(words)
    line = ", ".join(map(shown, names[:MOST_NAMES]))
    more = len(names) - MOST_NAMES
    return f"{line} and {more} more" if more > 0 else line


def first_lines(texts: Sequence[str], most: int, indent: int = 2) -> Iterator[str]:
    """Return the first lines of a list, and a line for how many more there are."""
    for text in texts[:most]:
        yield f"{' ' * indent}{text}"
    if len(texts) > most:
        yield f"{' ' * indent}and {len(texts) - most} more (--all)"


def size_in_words(num_bytes: float) -> str:
    """Return a size in MB or GB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.3g} MB"


def time_in_words(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
