"""Foreign words on a terminal: they move no cursor, hide nothing, and imitate no line."""

from __future__ import annotations

import shlex
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.nasty import NASTY, faults
from wardround.common.exits import guarded
from wardround.common.words import (
    LONGEST_WORD,
    cleaned,
    pasteable,
    printable,
    quoted,
    shown,
)


@pytest.mark.parametrize("name", NASTY)
def test_nasty_words_become_harmless(name: str) -> None:
    word = NASTY[name]
    for line in (printable(word), quoted(word), shown(word)):
        assert faults(line, 300) == []
        assert "  " not in line
    assert len(shown(word)) <= LONGEST_WORD + 2
    assert all(faults(line) == [] for line in cleaned(word).split("\n"))


@given(st.text())
def test_any_words_become_harmless(word: str) -> None:
    assert faults(printable(word, 50), 50) == []
    assert quoted(word)[1:-1].count('"') == 0
    assert printable(printable(word)) == printable(word)


def test_every_invisible_sign_is_removed() -> None:
    """All signs that Unicode marks as invisible are removed."""
    ignorable = [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0]
    ignorable += [*range(0x180B, 0x1810), *range(0x200B, 0x2010)]
    ignorable += [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
    assert [hex(code) for code in ignorable if not _is_removed(chr(code))] == []
    signs = map(chr, range(sys.maxunicode + 1))
    passing = [
        sign
        for sign in signs
        if not _is_removed(sign) and sign.isprintable() and not _is_mark(sign)
    ]
    assert faults("".join(passing)) == []


def _is_removed(sign: str) -> bool:
    return printable(f"a{sign}b") == "a b"


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign) in ("Mn", "Me")


def test_plain_names_stay_and_others_get_quotation_marks() -> None:
    for name in ("st_marys", "google-bert/bert@1.0", "Ärzte", "0.5"):
        assert shown(name) == name
    assert shown("heart failure") == '"heart failure"'
    assert shown("a, b") == '"a, b"'
    assert shown("") == '""'
    assert shown("x" * 61) == f'"{"x" * 59}…"'
    assert quoted('a" and "b') == "\"a' and 'b\""


def test_words_of_ordinary_languages_stay() -> None:
    for word in ("Überweisung", "Việt Nam", "कार्डियोलॉजी", "心臓病学", "e\u0301tude"):
        assert printable(word) == word


def test_line_breaks_and_spaces_of_our_own_layout_stay() -> None:
    assert cleaned("a:\n  b  c\x1b[2J\n") == "a:\n  b  c [2J\n"


def test_an_error_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        hidden = "\x1b[2J\u202e\x9b"
        raise ValueError(f"run_dir is '{hidden}'. Choose another.\nAnd read this.")

    said: list[str] = []
    assert guarded(fails, said.append, "stopped") == 2
    first, second = said[0].split("\n")
    assert faults(first) == []
    assert second == "And read this."


@pytest.mark.parametrize("path", ["outputs/a", "my run", "it's", "Zürich/[1]", "$HOME"])
def test_a_path_can_be_pasted_into_a_shell(path: str) -> None:
    assert shlex.split(f"wardround report {pasteable(Path(path))}")[2] == path
