"""Files of every form: read as pandas and pyarrow read them, or refused; never as anything else."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wardround.common.data.file_readers import read_file
from wardround.common.data.tables import Columns, Table
from wardround.common.file_form import FileForm
from wardround.common.tasks.label_names import label_column
from wardround.common.words import label_name

COLUMNS = Columns(("text",), label_column("label"))
SIGNS = {",": None, ";": ";", "\t": "tab", "|": "|"}
ENCODINGS = (
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "windows-1252"),
    *("iso8859-15", "cp1251", "gbk", "shift_jis"),
)
LETTERS = "ab ,;|\t\"'\n\r=\\#äßéЖ頭\u200b\u0301\ufeff\x00"
texts = st.text(LETTERS, min_size=1, max_size=8)
labels = st.text("ab01. éЖ\u200b", min_size=1, max_size=4).filter(
    lambda name: label_name(name) != ""
)
rows = st.lists(st.tuples(texts, labels), min_size=1, max_size=5)
few = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def outcome(path: Path, form: FileForm) -> list[tuple[str | None, Any]] | None:
    """Return text and label of every row; None if the file is refused with its name and a step."""
    try:
        table: Table = read_file(path, COLUMNS, "data.path", form)
    except ValueError as error:
        refusal = str(error)
    else:
        return list(zip(table.texts, table.targets, strict=True))
    assert path.name in refusal
    return None


def wanted(found: list[tuple[Any, Any]]) -> list[tuple[str | None, Any]]:
    """Return rows of another reader after the rules of rows."""
    return [
        (
            None if text is None or not text.strip() else text.replace("\0", "\ufffd"),
            None if label is None else label_name(str(label)) or None,
        )
        for text, label in found
    ]


def as_csv(data: list[tuple[str, str]], sign: str, end: str) -> str:
    """Return a CSV whose fields are quoted if they need it."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=sign, lineterminator=end)
    writer.writerows([("text", "label"), *data])
    return out.getvalue()


@few
@given(
    rows,
    st.sampled_from(list(SIGNS)),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(ENCODINGS),
    st.booleans(),
)
@example([("ä;b", "1"), ("x", "01")], ";", "\r\n", "utf-8", True)
def test_csv_is_read_as_pandas_reads_it(
    tmp_path: Path,
    data: list[tuple[str, str]],
    sign: str,
    end: str,
    encoding: str,
    has_excel_line: bool,
) -> None:
    text = as_csv(data, sign, end)
    first = f"sep={sign}{end}" if has_excel_line else ""
    content = (first + text).encode(encoding, errors="replace")
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    frame = pd.read_csv(
        path,
        sep=sign,
        encoding=encoding,
        skiprows=1 if has_excel_line else 0,
        dtype=str,
        keep_default_na=False,
        index_col=False,
        engine="python",
    )
    expected = wanted(list(frame[["text", "label"]].itertuples(index=False, name=None)))
    own = outcome(path, FileForm(SIGNS[sign], encoding))
    assert own in (expected, None)
    if "\0" not in text and not content.startswith(b"\xef\xbb\xbf\xef\xbb\xbf"):
        assert own == expected
    # Read in the usual form, it is either the same or refused.
    assert outcome(path, FileForm()) in (expected, None)


@few
@given(rows, st.integers(0, 30), st.sampled_from([0xE9, 0xFF, 0x80, 0xF6]))
def test_a_wrong_byte_in_utf8_is_never_read(
    tmp_path: Path, data: list[tuple[str, str]], at: int, byte: int
) -> None:
    text = as_csv([*data, ("Übel", "a")], ",", "\n").replace("\0", "")
    content = text.encode()
    position = len("text,label\n") + at % (len(content) - len("text,label\n"))
    path = tmp_path / "a.csv"
    path.write_bytes(content[:position] + bytes([byte]) + content[position:])
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        assert outcome(path, FileForm()) is None


@few
@given(
    st.lists(
        st.tuples(
            st.text(LETTERS + "\ud83d", max_size=6),
            st.one_of(labels, st.integers(0, 20), st.booleans(), st.none()),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_jsonl_is_read_as_json(
    tmp_path: Path, data: list[tuple[str, Any]], end: str, is_ascii: bool
) -> None:
    lines = [
        json.dumps({"text": text, "label": label}, ensure_ascii=is_ascii)
        for text, label in data
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(end.join(lines).encode("utf-8", errors="replace"))
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    expected = wanted([(row["text"], row["label"]) for row in found])
    expected = [
        (text and text.replace("\ud83d", "\ufffd"), label) for text, label in expected
    ]
    assert outcome(path, FileForm()) == expected


TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "categorical": pa.dictionary(pa.int8(), pa.string()),
    "int": pa.int16(),
    "float": pa.float32(),
    "bool": pa.bool_(),
    "decimal": pa.decimal128(5, 0),
    "null": pa.null(),
    "timestamp": pa.timestamp("us"),
    "date": pa.date32(),
    "binary": pa.binary(),
    "list": pa.list_(pa.string()),
    "struct": pa.struct([("a", pa.string())]),
}
VALUES: dict[str, list[Any]] = {
    "string": ["a", "b\u200b", None, " ", "é"],
    "int": [1, 2, None],
    "float": [1.0, 2.0, None],
    "bool": [True, False, None],
    "null": [None, None],
    "timestamp": [0, 1],
    "date": [date(2024, 1, 2)],
    "binary": [b"a"],
    "list": [["a"]],
    "struct": [{"a": "a"}],
}
VALUES |= {"large_string": VALUES["string"], "categorical": VALUES["string"]}
VALUES["decimal"] = [Decimal(1), Decimal(2), None]
AS_TEXT = ("string", "large_string", "categorical", "null")
AS_LABEL = (*AS_TEXT, "int", "float", "bool", "decimal")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("column", ["text", "label"])
def test_parquet_is_read_as_pyarrow_reads_it(
    tmp_path: Path, kind: str, column: str
) -> None:
    values = pa.array(VALUES[kind], TYPES[kind])
    table = pa.table({"text": ["x"] * len(values), "label": ["a"] * len(values)})
    place = table.column_names.index(column)
    path = tmp_path / "a.parquet"
    pq.write_table(table.set_column(place, column, values), path)
    own = outcome(path, FileForm())
    if kind not in (AS_TEXT if column == "text" else AS_LABEL):
        assert own is None
        return
    found = pq.read_table(path).to_pylist()
    pairs = [(row["text"], row["label"]) for row in found]
    if kind in ("float", "decimal"):
        pairs = [(text, label and int(label)) for text, label in pairs]
    assert own == wanted(pairs)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", ""),
        ("header.csv", "text,label\n"),
        ("blank.csv", "\n\n"),
        ("empty.jsonl", ""),
        ("blank.jsonl", "\n"),
        ("empty.parquet", ""),
    ],
)
def test_a_file_without_an_example_is_refused(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    assert outcome(tmp_path / name, FileForm()) is None


def test_one_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,a")
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "a"}')
    for name in ("a.csv", "a.jsonl"):
        assert outcome(tmp_path / name, FileForm()) == [("x", "a")]
