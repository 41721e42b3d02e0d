"""CSV, JSONL and Parquet files as tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wardround.common.data.file_guesses import (
    decoding_fault,
    excel_separator,
    header_elsewhere,
    looks_like,
    misread,
    with_excel_line,
    wrong_lines,
)
from wardround.common.data.file_kinds import is_parquet, other_kind
from wardround.common.data.tables import (
    Columns,
    Rows,
    Table,
    find_columns,
    numbered,
    table_of,
)
from wardround.common.errors import MissingColumn
from wardround.common.explain import first_line, nearest
from wardround.common.file_form import COMMA, FileForm
from wardround.common.words import label_name

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
    suffix = path.suffix.lower()
    _check_kind(path, suffix, key)
    return FILE_READERS[suffix](path, columns, form)


def refuse_other_kinds(path: Path, key: str, known: Collection[str]) -> None:
    """Raise ValueError if the bytes of a file show that it is none of the known kinds.

    Args:
        key: the setting that named the file.
        known: endings of the files that are read.
    """
    other = other_kind(path)
    if other is None and ".parquet" not in known and is_parquet(path):
        other = "a Parquet file", "Write it as JSONL or CSV"
    if other is not None:
        kind, step = other
        raise ValueError(f"{path} is {kind}; {key} reads {', '.join(known)}. {step}.")


def _check_kind(path: Path, suffix: str, key: str) -> None:
    """Raise ValueError if no reader reads such a file, or another than its name says."""
    refuse_other_kinds(path, key, FILE_READERS)
    if is_parquet(path) and suffix != ".parquet":
        raise ValueError(
            f"{path} is a Parquet file. Rename it so that it ends in .parquet."
        )
    if suffix not in FILE_READERS:
        step = _OTHER_NAMES.get(suffix, "Convert the file, or correct its extension")
        raise ValueError(
            f"{path} ends in '{path.suffix}'; {key} reads {', '.join(FILE_READERS)}. {step}."
        )


def read_csv(path: Path, columns: Columns, form: FileForm | None = None) -> Table:
    """Read a CSV whose first line names the columns. Raises as `read_file` does.

    Args:
        form: None if no setting gives it: comma and UTF-8.
    """
    rows = csv_rows(path, form, columns.names)
    _, header = next(rows, (0, list[str]()))
    if header and form is not None:
        check_header(path, header, columns, form)
    values = _named(path, header, rows)
    name = str(path)
    place = numbered(name, "line")
    found = Rows(name, header, values, place)
    return table_of(found, columns)


def _named(
    path: Path, header: Sequence[str], rows: Iterable[tuple[int, list[str]]]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the values of every row by column. Raises ValueError if a row is the header again."""
    for line, row in rows:
        if row == header:
            raise ValueError(
                f"{path}, line {line}: this line is the header again, as in files that were "
                "joined. Remove it."
            )
        values = zip(header, row, strict=True)
        yield line, dict(values)


def check_header(
    path: Path, header: Sequence[str], columns: Columns, form: FileForm
) -> None:
    """Raise MissingColumn, with the reason if one is found, if the header lacks a column."""
    present = set(map(label_name, header))
    missing = []
    for name in columns.names:
        if label_name(name) not in present:
            missing.append(name)
    if not missing:
        return
    form = with_excel_line(path, form)
    reason = header_elsewhere(path, form, columns.names)
    reason = reason or looks_like(path, form, columns.names)
    if reason is not None:
        raise MissingColumn(f"{path} has no column '{missing[0]}'; {reason}")


def csv_rows(
    path: Path, form: FileForm | None = None, wanted: Sequence[str] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Yield every row that is not blank, with the line it starts on.

    Excel's first line `sep=;` is no row, and gives the delimiter. Empty fields beyond the number
    of columns are left out.

    Args:
        form: None if no setting gives it: comma and UTF-8.
        wanted: columns to look for. If the file cannot be read, they help to guess its form.

    Raises:
        ValueError: a row has another number of fields than the first, quotes do not close, or
            the file is not in its encoding.
    """
    csv.field_size_limit(LONGEST_FIELD)
    used_form = FileForm()
    has_excel_line = False
    if form is not None:
        require_encoding(path, form)
        form = used_form = with_excel_line(path, form)
        has_excel_line = excel_separator(path, form) is not None
    width = 0
    with path.open(encoding=used_form.codec, newline="") as file:
        if has_excel_line:
            file.readline()
        reader = csv.reader(file, delimiter=used_form.separator, strict=True)
        while True:
            # A quoted field can span lines; this is the line that the row starts on.
            line = reader.line_num + 1 + has_excel_line
            try:
                row = next(reader, None)
            except UnicodeError:
                raise ValueError(undecodable(path, form, wanted)) from None
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {line}: the row that starts here is broken at line "
                    f"{reader.line_num + has_excel_line} "
                    f"({error}){_remedy(path, form, wanted)}"
                ) from None
            if row is None:
                return
            if not row:
                continue
            width = width or len(row)
            if not any(row[width:]):
                row = row[:width]
            if len(row) != width and any("\0" in field for field in row):
                raise ValueError(
                    f"{path}, line {line}: the row holds NUL bytes, as in files that were not "
                    "written whole. Copy or export the file again."
                )
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
    present = dict.fromkeys(key for _, row in rows for key in row)
    name = str(path)
    place = numbered(name, "line")
    found = Rows(name, list(present), rows, place)
    return table_of(found, columns)


def jsonl_rows(path: Path, form: FileForm) -> list[tuple[int, dict[str, Any]]]:
    """Return every object of a file of one JSON object a line, with its line.

    Raises:
        ValueError: a line is no JSON object, or the file is not in its encoding.
    """
    require_encoding(path, form)
    with path.open(encoding=form.codec) as file:
        try:
            return [
                (line, _json_object(path, line, content))
                for line, content in enumerate(file, start=1)
                if content.strip()
            ]
        except UnicodeError:
            raise ValueError(undecodable(path, form)) from None


def _json_object(path: Path, line: int, content: str) -> dict[str, Any]:
    place = f"{path}, line {line}"
    try:
        row = json.loads(content, object_pairs_hook=_fields)
    except KeyError as error:
        raise ValueError(
            f"{place}: the object holds {error} twice. Rename or remove one of them."
        ) from None
    except RecursionError:
        raise ValueError(
            f"{place}: too many nested brackets. Write one plain object on each line."
        ) from None
    except ValueError as error:
        is_array = line == 1 and content.lstrip().startswith("[")
        fault = getattr(error, "msg", first_line(error))
        column = getattr(error, "colno", None)
        at = f" at column {column}" if column else ""
        step = _FROM_ARRAY if is_array else "Write one whole JSON object on each line."
        raise ValueError(f"{place}: not valid JSON ({fault}{at}). {step}") from None
    if isinstance(row, list):
        raise ValueError(f"{place}: not a JSON object but an array. {_FROM_ARRAY}")
    if not isinstance(row, dict):
        raise ValueError(
            f"{place}: not a JSON object. Write {{...}} with named fields."
        )
    return row


def _fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object. Raises KeyError if two have the same name."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = [name for name in names if names.count(name) > 1]
        raise KeyError(doubled[0])
    return fields


def read_parquet(path: Path, columns: Columns, form: FileForm) -> Table:
    """Read a Parquet file; a row's place is its number from 1. Raises as `read_file` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            header = file.schema_arrow.names
            spelled = find_columns(columns, header, str(path))
            wanted = dict.fromkeys(spelled.values())
            table = file.read(columns=list(wanted))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({first_line(error)}). Write or copy "
            "it again."
        ) from None
    values = {}
    for name in table.column_names:
        values[name] = _parquet_values(path, name, table.column(name))
    columns_in_order = values.values()
    rows = (
        dict(zip(values, row, strict=True))
        for row in zip(*columns_in_order, strict=True)
    )
    place = numbered(str(path), "row")
    found = Rows(str(path), header, enumerate(rows, start=1), place)
    return table_of(found, columns)


def _parquet_values(path: Path, name: str, column: Any) -> list[Any]:
    """Return the values of a column. Raises ValueError, with the row, if one is not UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(column, start=1):
            try:
                value.as_py()
            except UnicodeDecodeError:
                raise ValueError(
                    f"{path}, row {row}: column '{name}' holds bytes that are not UTF-8. "
                    "Write the file again from the source, with the right encoding."
                ) from None
        raise
    return values


FILE_READERS: dict[str, Callable[[Path, Columns, FileForm], Table]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


_FROM_ARRAY = "Write one object a line, for example: jq -c '.[]' OLD > NEW.jsonl"
_OTHER_NAMES = {
    ".tsv": "Rename it so that it ends in .csv, and set the delimiter to tab",
    ".txt": "If it is a table, rename it so that it ends in .csv, and set its delimiter",
    ".json": "If each line is one object, rename it so that it ends in .jsonl; if it is one "
    "array: jq -c '.[]' OLD > NEW.jsonl",
    ".ndjson": "Rename it so that it ends in .jsonl",
    ".pq": "Rename it so that it ends in .parquet",
    ".parq": "Rename it so that it ends in .parquet",
}
"""Next steps for files with another ending."""


def require_encoding(path: Path, form: FileForm) -> None:
    """Raise ValueError if the file is UTF-8 although another encoding is set."""
    if form.encoding is not None and (fault := misread(path.read_bytes(), form)):
        raise ValueError(f"{path} {fault}.")


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
    content = path.read_bytes()
    used_form = form or FileForm()
    fault = decoding_fault(content, used_form)
    if fault is None:
        return f"{path} changed while it was read. Start again."
    if used_form.codec == FileForm().codec and (lines := wrong_lines(content)):
        return f"{path} is {fault}; {lines}."
    if form is None:
        step = "Save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        return f"{path} is {fault}. {step}"
    other = looks_like(path, form, wanted)
    if other is not None:
        return f"{path} is {fault}; {other}"
    return (
        f"{path} is {fault}. Ask the person who exported it for its encoding, and set "
        f"{form.key('encoding')} to that."
    )
