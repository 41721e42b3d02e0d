"""CSV, JSONL and Parquet files as tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wardround.common.data.tables import Columns, Table, require_columns, table_of
from wardround.common.errors import MissingColumn
from wardround.common.explain import first_line, nearest
from wardround.common.file_form import COMMA, FileForm, decoding_fault, looks_like

LONGEST_FIELD = 2**31 - 1
"""Largest size of a CSV field; a clinical letter can exceed the csv module's 128 KiB."""


def read_file(path: Path, columns: Columns, key: str, form: FileForm) -> Table:
    """Read a CSV (with header), JSONL or Parquet file, by its extension.

    Args:
        key: the setting that named the file, for messages.
        form: delimiter and encoding; Parquet needs neither.

    Raises:
        MissingColumn: it lacks a column.
        ValueError: the file is missing, empty, of another kind, broken, or not in its encoding.
    """
    require_file(path, key)
    reader = FILE_READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path} ends in '{path.suffix}'; {key} reads {', '.join(FILE_READERS)}. "
            "Convert the file, or correct its extension."
        )
    return reader(path, columns, form)


def read_csv(path: Path, columns: Columns, form: FileForm | None = None) -> Table:
    """Read a CSV whose first line names the columns. Raises as `read_file` does.

    Args:
        form: None if no setting gives it: comma and UTF-8.
    """
    rows = csv_rows(path, form, columns.names)
    _, header = next(rows, (0, list[str]()))
    if header:
        _check_header(path, header, columns, form)
    named_rows = ((line, dict(zip(header, row, strict=True))) for line, row in rows)
    return table_of(str(path), named_rows, columns)


def _check_header(
    path: Path, header: Sequence[str], columns: Columns, form: FileForm | None
) -> None:
    missing = [name for name in columns.names if name not in header]
    if missing and form is not None:
        other = looks_like(path, form, columns.names)
        if other is not None:
            raise MissingColumn(f"{path} has no column '{missing[0]}'; {other}")
    require_columns(columns, header, str(path))
    for name in columns.names:
        if header.count(name) > 1:
            raise ValueError(
                f"{path}: {header.count(name)} columns are called '{name}'. Rename all "
                "except one."
            )


def csv_rows(
    path: Path, form: FileForm | None = None, wanted: Sequence[str] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Yield every row that is not blank, with the line it starts on.

    Args:
        form: None if no setting gives it: comma and UTF-8.
        wanted: columns to look for. If the file cannot be read, they help to guess its form.

    Raises:
        ValueError: a row has another number of fields than the first, quotes do not close, or
            the file is not in its encoding.
    """
    csv.field_size_limit(LONGEST_FIELD)
    used_form = form or FileForm()
    width = 0
    with path.open(encoding=used_form.codec, newline="") as file:
        reader = csv.reader(file, delimiter=used_form.separator, strict=True)
        while True:
            # A quoted field can span lines; this is the line that the row starts on.
            line = reader.line_num + 1
            try:
                row = next(reader, None)
            except UnicodeError:
                raise ValueError(undecodable(path, form, wanted)) from None
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {line}: the row that starts here is broken at line "
                    f"{reader.line_num} ({error}){_remedy(path, form, wanted)}"
                ) from None
            if row is None:
                return
            if not row:
                continue
            width = width or len(row)
            if len(row) != width:
                separator = used_form.separator
                sign = "a comma" if separator == COMMA else repr(separator)
                raise ValueError(
                    f"{path}, line {line}: {len(row)} fields, but the first row has "
                    f"{width}. Put fields that hold {sign} in double quotes."
                )
            yield line, row


def _remedy(path: Path, form: FileForm | None, wanted: Sequence[str]) -> str:
    """Return the next step for broken quotes, which a wrong delimiter can cause too."""
    other = looks_like(path, form, wanted) if form is not None else None
    if other:
        return f"; {other}"
    return ". Close every quote that is opened, and double a quote inside a field."


def read_jsonl(path: Path, columns: Columns, form: FileForm) -> Table:
    """Read a file of one JSON object a line. Raises as `read_file` does."""
    rows = jsonl_rows(path, form)
    if rows:
        present = dict.fromkeys(key for _, row in rows for key in row)
        require_columns(columns, list(present), str(path))
    return table_of(str(path), rows, columns)


def jsonl_rows(
    path: Path, form: FileForm | None = None
) -> list[tuple[int, dict[str, Any]]]:
    """Return every object of a file of one JSON object a line, with its line.

    Args:
        form: None if no setting gives it: UTF-8.

    Raises:
        ValueError: a line is no JSON object, or the file is not in its encoding.
    """
    used_form = form or FileForm()
    with path.open(encoding=used_form.codec, newline="\n") as file:
        try:
            return [
                (line, _json_object(path, line, content))
                for line, content in enumerate(file, start=1)
                if content.strip()
            ]
        except UnicodeError:
            raise ValueError(undecodable(path, form)) from None


def _json_object(path: Path, line: int, content: str) -> dict[str, Any]:
    try:
        row = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line}: not valid JSON ({error.msg} at column {error.colno}). "
            "Write one whole JSON object on each line."
        ) from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {line}: not a JSON object. Write {{...}} with named fields."
        )
    return row


def read_parquet(path: Path, columns: Columns, form: FileForm) -> Table:
    """Read a Parquet file; a row's place is its number from 1. Raises as `read_file` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(dict.fromkeys(columns.names))
    try:
        with pq.ParquetFile(path) as file:
            require_columns(columns, file.schema_arrow.names, str(path))
            rows = file.read(columns=wanted).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({first_line(error)}). Write or copy "
            "it again."
        ) from None
    return table_of(str(path), enumerate(rows, start=1), columns, "row")


FILE_READERS: dict[str, Callable[[Path, Columns, FileForm], Table]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def require_file(path: Path, key: str) -> None:
    """Raise ValueError unless `path` is a file that is not empty."""
    if not path.exists():
        folder = path.parent
        siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise ValueError(
            f"{key}: {path} does not exist.{nearest(path.name, siblings)} Correct {key}."
        )
    if not path.is_file():
        raise ValueError(
            f"{key}: {path} is a folder; a file is needed. Set {key}=<file>."
        )
    if path.stat().st_size == 0:
        raise ValueError(
            f"{path} is empty (0 bytes). Check that the file was written whole."
        )


def undecodable(path: Path, form: FileForm | None, wanted: Sequence[str] = ()) -> str:
    """Return the message for a file that is not in its encoding, with the first wrong byte.

    Args:
        form: None if no setting gives it: UTF-8.
        wanted: as for `csv_rows`.
    """
    fault = decoding_fault(path.read_bytes(), form or FileForm())
    if fault is None:
        return f"{path} changed while it was read. Start again."
    if form is None:
        step = "Save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        return f"{path} is {fault}. {step}"
    other = looks_like(path, form, wanted)
    if other is not None:
        return f"{path} is {fault}; {other}"
    return (
        f"{path} is {fault}. Ask the person who exported it for its encoding, and set "
        "data.encoding to that."
    )
