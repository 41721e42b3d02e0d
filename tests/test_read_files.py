"""CSV, JSONL and Parquet: the rows that are read, and the messages for broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.reading import message, pairs, read, write


@pytest.fixture
def test_csv(tmp_path: Path) -> str:
    return write(tmp_path / "held" / "test.csv", "text,label\nt1,a\nt2,b\n")


def test_csv_with_quotes_commas_and_line_breaks_is_read(
    tmp_path: Path, test_csv: str
) -> None:
    path = write(
        tmp_path / "a.csv", 'id,text,label\n1,"one, ""two""",a\n\n2,"three\nfour", b \n'
    )
    data = read(path=path, test_path=test_csv)
    assert pairs(data) == [('one, "two"', "a"), ("three\nfour", "b")]
    assert pairs(data, "test") == [("t1", "a"), ("t2", "b")]
    assert data.train.targets.dtype == "int64"
    assert data.site_sizes == ()
    assert data.findings == ()


def test_csv_joins_the_named_columns_that_are_not_empty(
    tmp_path: Path, test_csv: str
) -> None:
    path = write(tmp_path / "a.csv", "title,body,topic\nT,B,a\n,only body,b\n")
    test = write(tmp_path / "held" / "t.csv", "title,body,topic\nx,y,a\n")
    data = read(
        path=path, test_path=test, text_columns=("title", "body"), label_column="topic"
    )
    assert data.train.texts == ["T B", "only body"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_byte_order_mark_is_accepted(
    tmp_path: Path, test_csv: str, suffix: str
) -> None:
    rows = {
        ".csv": "text,label\nx,a\ny,b\n",
        ".jsonl": '{"text":"x","label":"a"}\n{"text":"y","label":"b"}',
    }
    path = write(tmp_path / f"a{suffix}", b"\xef\xbb\xbf" + rows[suffix].encode())
    assert pairs(read(path=path, test_path=test_csv)) == [("x", "a"), ("y", "b")]


def test_a_field_longer_than_the_csv_modules_default_is_read(
    tmp_path: Path, test_csv: str
) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{'x' * 200_000},a\ny,b\n")
    assert len(read(path=path, test_path=test_csv).train.texts[0]) == 200_000


def test_jsonl_numbers_are_labels_in_the_order_of_their_value(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": n} for n in (10, 2, 2, 10)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(path=path).label_names == ("2", "10")


def test_parquet_is_read(tmp_path: Path, test_csv: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["x", "y"], "label": ["a", "b"], "more": [1, 2]}), path
    )
    assert pairs(read(path=str(path), test_path=test_csv)) == [("x", "a"), ("y", "b")]


def test_parquet_labels_that_pandas_made_floats_are_whole_numbers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": list("wxyz"), "label": [0.0, 1.0, 0.0, 1.0]}), path
    )
    assert read(path=str(path)).label_names == ("0", "1")


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "reports.csv", "text,label\nx,a\n")
    said = message(path=str(tmp_path / "report.csv"))
    assert "data.path" in said
    assert "report.csv does not exist" in said
    assert "Nearest: 'reports.csv'" in said


def test_a_missing_test_file_is_refused_with_its_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,a\n")
    said = message(path=path, test_path="/nowhere/t.csv")
    assert said.startswith("data.test_path: /nowhere/t.csv")


def test_the_training_file_is_refused_as_test_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,a\n")
    said = message(path=path, test_path=path)
    assert f"data.test_path and data.path are both {path}" in said
    assert "Set data.test_path to another file" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "Text,label\nx,a\n"),
        ("a.jsonl", '{"Text": "x", "label": "a"}\n'),
        ("a.parquet", pa.table({"Text": ["x"], "label": ["a"]})),
    ],
)
def test_missing_column_lists_the_columns_and_the_nearest(
    tmp_path: Path, name: str, content: Any
) -> None:
    path = tmp_path / name
    write(path, content) if isinstance(content, str) else pq.write_table(content, path)
    said = message(path=str(path))
    assert f"{name} has no column 'text'" in said
    assert "Text, label. Nearest: 'Text'" in said
    assert "data.text_columns" in said
    said = message(path=str(path), text_columns=("Text",), label_column="lable")
    assert "data.label_column" in said


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    assert "2 columns are called 'text'" in message(
        path=write(tmp_path / "a.csv", "text,text,label\nx,y,a\n")
    )


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    said = message(path=write(tmp_path / name, ""))
    assert f"{name} is empty (0 bytes)" in said


def test_a_file_without_an_example_is_refused(tmp_path: Path) -> None:
    nothing = pa.array([], pa.string())
    pq.write_table(
        pa.table({"text": nothing, "label": nothing}), tmp_path / "a.parquet"
    )
    write(tmp_path / "a.csv", "text,label\n")
    write(tmp_path / "b.csv", "\n\n")
    write(tmp_path / "a.jsonl", "\n")
    for name in ("a.csv", "b.csv", "a.jsonl", "a.parquet"):
        assert f"{name} is empty: it holds no example" in message(
            path=str(tmp_path / name)
        )


def test_wrong_number_of_fields_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",a\nx,y,z\n')
    assert "a.csv, line 4: 3 fields, but the first row has 2" in message(path=path)


def test_quote_that_is_never_closed_names_the_line_it_opens_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\nx,a\n"open,a\ny,b\n')
    said = message(path=path)
    assert "a.csv, line 3: " in said
    assert "Close every quote" in said


def test_text_after_a_closing_quote_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"x"y,a\n')
    assert "a.csv, line 2: " in message(path=path)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("a.csv", b"text,label\n" + b"x,a\n" * 5000),
        ("a.jsonl", b'{"text": "x", "label": "a"}\n' * 3),
    ],
)
def test_not_utf8_names_offset_and_line(
    tmp_path: Path, name: str, before: bytes
) -> None:
    path = write(tmp_path / name, before + b"\xa35,a\n")
    line = before.count(b"\n") + 1
    said = message(path=path)
    assert (
        f"{name} is not UTF-8: byte 0xa3 at offset {len(before)}, line {line};" in said
    )
    assert said.endswith("Windows-1252. Set data.encoding=windows-1252")


def test_broken_jsonl_names_the_line(tmp_path: Path) -> None:
    good = '{"text": "x", "label": "a"}\n'
    assert "a.jsonl, line 3: not valid JSON" in message(
        path=write(tmp_path / "a.jsonl", good * 2 + "{oops\n")
    )
    assert "b.jsonl, line 2: not a JSON object" in message(
        path=write(tmp_path / "b.jsonl", good + "[1]\n")
    )


def test_jsonl_row_without_a_key_is_missing_text_or_label(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x", "label": "a"}\n{"label": "b"}\n')
    said = message(path=path)
    assert "1 of 2 examples" in said
    assert "a.jsonl, line 2" in said
    assert "data.drop_empty=true" in said
    path = write(tmp_path / "b.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"}\n')
    said = message(path=path)
    assert "1 of 2 examples" in said
    assert "b.jsonl, line 2" in said
    assert "data.label_column" in said


def test_values_of_the_wrong_type_name_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": 5, "label": "a"}\n')
    assert "a.jsonl, line 1: column 'text' holds a number (int)" in message(path=path)
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x", "y"], "label": [1.0, 0.5]}), file)
    said = message(path=str(file))
    assert "a.parquet, row 2: column 'label' holds a number (float)" in said


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1 and then nothing")
    assert "a.parquet is not a readable Parquet file" in message(path=path)


def test_unknown_extension_lists_the_known(tmp_path: Path) -> None:
    assert ".csv, .jsonl, .parquet" in message(path=write(tmp_path / "a.xlsx", "x"))
