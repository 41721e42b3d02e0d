"""Foreign words, made safe for a terminal, a log, and sentences of this program.

`str.isprintable` rejects control characters, direction marks and unusual spaces. It accepts
invisible signs (fillers, variation selectors, the blank of braille) and any number of marks
on one letter, which reach into the lines above and below.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime

NAME = re.compile(r"[a-z0-9_-]{1,64}")
"""The form of a name of a site, or of a person who approves plans."""
LONGEST_TEXT = 300
LONGEST_WORD = 60
_MOST_MARKS = 2
_PLAIN = frozenset("._+@/-:")
_UNSEEN = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F),  # combining grapheme joiner
        (0x115F, 0x1160),  # Hangul fillers
        (0x17B4, 0x17B5),  # Khmer inherent vowels
        (0x180B, 0x180F),  # Mongolian variation selectors
        (0x2800, 0x2800),  # braille without a dot
        (0x3164, 0x3164),  # Hangul filler
        (0xFE00, 0xFE0F),  # variation selectors
        (0xFFA0, 0xFFA0),  # half-width Hangul filler
        (0x13441, 0x13442),  # blank hieroglyphs
        (0x16FE4, 0x16FE4),  # Khitan filler
        (0x1D159, 0x1D159),  # musical null note head
        (0xE0100, 0xE01EF),  # variation selectors
    )
    for code in range(first, last + 1)
)
"""Signs that `str.isprintable` accepts, but that a reader does not see."""
_JOINERS = "\u200c\u200d"
"""They cannot be seen themselves, but they shape the letters beside them in some scripts."""
_HALF = re.compile("[\ud800-\udfff]")
_WHOLE_NUMBER = re.compile(r"\d+([.,]0*)?")


def printable(text: str, most: int | None = LONGEST_TEXT) -> str:
    """Return foreign words on one line, with one space between them.

    Args:
        most: number of letters. A longer text is cut and ends with `…`. None for no bound.
    """
    cut = text if most is None else text[:most]
    line = " ".join("".join(_seen(cut, kept="")).split())
    is_cut = len(cut) < len(text)
    return f"{line[: len(cut) - 1]}…" if is_cut else line


def pasteable(path: object) -> str:
    """Return a path as one word of a shell, so that a command with it can be pasted."""
    return shlex.quote(str(path))


def quoted(text: str, most: int = LONGEST_WORD) -> str:
    """Return foreign words in quotation marks, which they cannot close."""
    return '"' + printable(text, most).replace('"', "'") + '"'


def shown(text: str, most: int = LONGEST_WORD) -> str:
    """Return a foreign name: unchanged if it is plain, else in quotation marks.

    A plain name holds letters, digits and `._+@/-:`.
    """
    is_plain = all(letter.isalnum() or letter in _PLAIN for letter in text)
    is_whole = printable(text, most) == text
    return text if text and is_plain and is_whole else quoted(text, most)


def label_name(text: str) -> str:
    """Return the name of a label or a column in the one spelling that all others are read as.

    Letters are composed (NFC), signs that nobody sees are left out, and white space between
    words is one space. Joiners stay, because some scripts need them.
    """
    composed = unicodedata.normalize("NFC", _HALF.sub("\ufffd", text))
    seen = (
        letter for letter in composed if letter in _JOINERS or not _is_unseen(letter)
    )
    return " ".join("".join(seen).split())


def look_of(name: str) -> str:
    """Return a key that is the same for names that people take for the same.

    Such names differ in case, in forms of letters (NFKC), in joiners, or are the same whole
    number: `1`, `01` and `1.0`.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = "".join(letter for letter in plain if letter not in _JOINERS)
    if _WHOLE_NUMBER.fullmatch(plain):
        return str(int(re.split("[.,]", plain)[0]))
    return plain


def code_points(text: str) -> str:
    """Return a text in which every sign outside ASCII is written as `<U+00E9>`, in quotes."""
    signs = (
        letter
        if letter.isascii() and letter.isprintable()
        else f"<U+{ord(letter):04X}>"
        for letter in text[:LONGEST_WORD]
    )
    return "'" + "".join(signs) + "'"


def _is_unseen(letter: str) -> bool:
    is_control = unicodedata.category(letter) in ("Cc", "Cf")
    return letter in _UNSEEN or (is_control and not letter.isspace())


def cleaned(text: str) -> str:
    """Return a text of this program without control characters. Lines and spaces stay.

    This is the last step before a terminal or a log. It cannot detect foreign lines: the
    functions above must have cleaned the foreign words in the text.
    """
    return "".join(_seen(text, kept="\n"))


def printable_day(seconds: float) -> str:
    """Return the day of a time from a foreign file, UTC.

    Args:
        seconds: since 1970. They may lie outside the calendar.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return f"a day that no calendar has ({seconds:g})"


def _seen(text: str, kept: str) -> Iterator[str]:
    """Yield the letters of a text, with a space for every sign that cannot be seen.

    Args:
        kept: signs that stay.
    """
    marks = _MOST_MARKS  # a mark needs a letter to stand on
    for letter in text:
        is_mark = unicodedata.category(letter) in ("Mn", "Me")
        marks = marks + 1 if is_mark else 0
        is_seen = (
            letter.isprintable() and letter not in _UNSEEN and marks <= _MOST_MARKS
        )
        if letter == " " or not is_seen:
            marks = _MOST_MARKS
        yield letter if is_seen or letter in kept else " "
