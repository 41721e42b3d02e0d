"""Words of an attacker: they would move cursors, hide, or imitate lines and columns of ours."""

from __future__ import annotations

import unicodedata

NASTY = {
    "escape": "a\x1b[2J\x1b[1A\x1b[8mb",
    "title": "a\x1b]0;owned\x07b",
    "C1 controls": "a\x9b2Jb\x85c\x90d",
    "lines": "a\nok      tls         all is well\r\nb",
    "carriage return": "refused\rapproved",
    "backspace": "no\x08\x08yes",
    "tabs": "a\t\t\tb\x0bc\x0cd",
    "separators": "a\u2028Next: wardround-site approve\u2029b",
    "overrides": "a\u202eetacilpud\u202db\u202c",
    "isolates": "a\u2066b\u2067c\u2068d\u2069",
    "marks of direction": "a\u200eb\u200fc\u061cd",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufeff\u00adf",
    "spaces": "bert" + " " * 70 + "  ok  model.name = bert: one of bert",
    "other spaces": "a\u00a0\u00a0\u2003\u2003\u3000\u3000\u202f\u205f\u1680b",
    "blanks that are letters": "a\u3164\u3164\u115f\u1160\uffa0\u2800\u2800b",
    "variation selectors": "a\ufe00\ufe0f\U000e0100\u034f\u180bb",
    "marks on one letter": "a" + "\u0301\u0488" * 60,
    "a mark alone": "\u0301a",
    "tags": "a\U000e0041\U000e0042b",
    "private and unassigned": "a\ue000\U0010fffe\u0378b",
    "quotation marks": 'bert", signed by the coordinator: "approved',
    "very long": "x" * 100_000,
    "nothing": "",
}
"""The words by their fault."""
_BLANK = "\u3164\u115f\u1160\uffa0\u2800\u034f\u180b"


def faults(text: str, most: int | None = None) -> list[str]:
    """Return the faults of a printed line; a good line has none.

    Args:
        most: the largest number of letters.
    """
    found = [f"U+{ord(sign):04X}" for sign in text if _is_bad(sign)]
    marks = [unicodedata.category(sign) in ("Mn", "Me") for sign in text]
    if any(all(marks[at : at + 3]) for at in range(len(marks) - 2)):
        found.append("three marks on one letter")
    if most is not None and len(text) > most:
        found.append(f"{len(text)} letters")
    return found


def _is_bad(sign: str) -> bool:
    category = unicodedata.category(sign)
    is_other_space = category[0] == "Z" and sign != " "
    is_selector = "\ufe00" <= sign <= "\ufe0f" or "\U000e0100" <= sign <= "\U000e01ef"
    return category[0] == "C" or is_other_space or is_selector or sign in _BLANK
