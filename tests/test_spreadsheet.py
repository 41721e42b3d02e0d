"""CSV for people: no text becomes a formula in a spreadsheet, and numbers stay numbers."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.door import CommandResult, run_dir_of, wardround
from tests.support.hostile_models import change_json, copy_of
from wardround.server.spreadsheet import safe_text, write_rows

LINK = '=HYPERLINK("http://example.org","look")'


@pytest.mark.parametrize(
    "text",
    [
        LINK,
        "+1",
        "-2+3",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\tx",
        "\rx",
        "  =1",
        "'=1",
        '"=1"',
        " \u00a0=1",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff201",
    ],
)
def test_a_text_that_begins_a_formula_gets_a_mark(text: str) -> None:
    assert safe_text(text).startswith("'")
    assert safe_text(text).endswith(text.lstrip("\t")[1:])


def test_a_formula_after_another_separator_gets_a_mark() -> None:
    assert safe_text("a;=1") == "a;'=1"
    assert safe_text("a\t@b") == "a\t'@b"
    assert safe_text("a; -b") == "a;' -b"


@pytest.mark.parametrize(
    "text", ["", "a=1", "x - y", "0.5", "a\n- b", "it's", "'quoted'", "a;b", "1;2"]
)
def test_other_texts_stay(text: str) -> None:
    assert safe_text(text) == text


@given(st.text(alphabet="=+-@;\t\r\n '\"a1\uff1d"))
def test_no_cell_of_any_spreadsheet_begins_with_a_sign(text: str) -> None:
    safe = safe_text(text)
    for cell in re.split("[;\t]", safe):
        assert not re.match(r"[\s\"]*[=+\-@\uff1d]", cell), (text, safe)
    assert not re.match(r" *[\t\r\n]", safe)
    # Only marks were added.
    assert safe.replace("'", "") == text.replace("'", "")


def test_numbers_stay_numbers() -> None:
    out = io.StringIO()
    write_rows(out, [["text", "value"], ["-1", -1.5], [None, 3]])
    assert out.getvalue() == "text,value\n'-1,-1.5\n,3\n"


def test_predict_writes_no_formula(
    learned_run: tuple[list[str], CommandResult], tmp_path: Path
) -> None:
    """Neither a text nor a label in a model's folder becomes a formula."""
    folder = copy_of(run_dir_of(learned_run[0]) / "model", tmp_path / "model")
    labels = {"0": "health", "1": "=1+1", "2": "\x1b[2Jsport"}
    numbers = {label: int(number) for number, label in labels.items()}
    change_json(folder / "config.json", id2label=labels, label2id=numbers)
    texts = [LINK, "  @bank loan", "bank loan", "-"]
    words = [word for text in texts for word in ("--text", text)]
    said = wardround("predict", str(folder), *words)
    assert said.code == 0, said.err
    header, *rows = csv.reader(said.out.splitlines(keepends=True))
    assert header == ["text", "label", "health", "'=1+1", " [2Jsport"]
    assert [row[0] for row in rows] == [f"'{LINK}", "'  @bank loan", "bank loan", "'-"]
    assert rows[2][1] == "'=1+1"
    for row in rows:
        assert sum(map(float, row[2:])) == pytest.approx(1, abs=2e-4)
    for row in (header, *rows):
        for cell in row:
            assert not cell.lstrip().startswith(tuple("=+-@"))
