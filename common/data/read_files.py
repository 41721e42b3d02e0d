"""One local file (CSV, JSONL or Parquet) as a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.data.file_form import COMMA, FileForm, decoding_fault, looks_like
from common.data.tables import (
    Columns,
    Table,
    as_label,
    as_text,
    column_table,
    join_texts,
    require_columns,
)
from common.errors import first_line, nearest

# A clinical letter can be longer than the csv module's default of 128 KiB.
LONGEST_FIELD = 2**31 - 1
# Columns of the CSV files of Zhang et al. (2015), which have no header: class, then these.
ZHANG_COLUMNS = {2: ("text",), 3: ("title", "description")}


def read_file(path: Path, columns: Columns, key: str, form: FileForm) -> Table:
    """Read a CSV (with header), JSONL or Parquet file, told apart by its extension.

    Args:
        key: the setting that named the file, for messages.
        form: how it is written; Parquet says that itself.

    Raises:
        ValueError: the file is missing, empty, of another kind, broken, not in its encoding, or lacks a
            column.
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

    Args: form: None where no setting says it: comma and UTF-8.
    """
    rows = csv_rows(path, form, columns.names)
    _, header = next(rows, (0, list[str]()))
    if header:
        missing = [name for name in columns.names if name not in header]
        other = looks_like(path, form, columns.names) if missing and form is not None else None
        if other is not None:
            raise ValueError(f"{path} has no column '{missing[0]}'; {other}")
        require_columns(columns, header, str(path))
    for name in columns.names:
        if header.count(name) > 1:
            raise ValueError(f"{path}: {header.count(name)} columns are called '{name}'. Rename all but one.")
    at = {name: position for position, name in enumerate(header)}
    texts, labels, lines = list[str | None](), list[str | None](), list[int]()
    for line, row in rows:
        texts.append(join_texts([row[at[name]] for name in columns.text]))
        labels.append(row[at[columns.label]].strip() or None)
        lines.append(line)
    return filled_table(path, texts, labels, lines)


def csv_rows(
    path: Path, form: FileForm | None = None, wanted: Sequence[str] = ()
) -> Iterator[tuple[int, list[str]]]:
    """Yield every row that is not blank, with the line it starts on.

    Args:
        form: None where no setting says it: comma and UTF-8.
        wanted: columns that are looked for; if the file cannot be read, they tell in which form it could be.

    Raises:
        ValueError: a row has another number of fields than the first, quotes do not close, or the
            file is not in its encoding.
    """
    csv.field_size_limit(LONGEST_FIELD)
    width, said = 0, form or FileForm()
    with path.open(encoding=said.codec, newline="") as file:
        reader = csv.reader(file, delimiter=said.separator, strict=True)
        while True:
            line = reader.line_num + 1  # a quoted field can span lines: name the one it starts on
            try:
                row = next(reader, None)
            except UnicodeError:
                raise ValueError(undecodable(path, form, wanted)) from None
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {line}: the row that starts here is broken at line {reader.line_num} "
                    f"({error}){_remedy(path, form, wanted)}"
                ) from None
            if row is None:
                return
            width = width or len(row)
            if row and len(row) != width:
                sign = "a comma" if said.separator == COMMA else repr(said.separator)
                raise ValueError(
                    f"{path}, line {line}: {len(row)} fields, but the first row has {width}. "
                    f"Put fields that hold {sign} in double quotes."
                )
            if row:
                yield line, row


def _remedy(path: Path, form: FileForm | None, wanted: Sequence[str]) -> str:
    """Behind what is wrong with quotes: they break, too, where columns are told apart by another sign."""
    other = looks_like(path, form, wanted) if form is not None else None
    return f"; {other}" if other else ". Close every quote that is opened, and double a quote inside a field."


def read_zhang_csv(path: Path, text_columns: Sequence[str], label_names: Sequence[str] | None) -> Table:
    """Read a CSV of Zhang et al. (2015): no header, class number from 1, then the texts.

    A quote is doubled and a line break is written as backslash and n, as the source's readme says;
    no other escape exists there, so any other backslash stays.

    Raises:
        ValueError: the file is broken or not UTF-8, or a class number has no name.
    """
    texts, labels, lines = list[str | None](), list[str | None](), list[int]()
    positions: list[int] = []
    for line, row in csv_rows(path):
        positions = positions or _zhang_positions(path, len(row), text_columns)
        texts.append(join_texts([row[position].replace("\\n", "\n") for position in positions]))
        labels.append(_zhang_label(row[0], label_names, f"{path}, line {line}"))
        lines.append(line)
    return filled_table(path, texts, labels, lines)


def _zhang_positions(path: Path, width: int, wanted: Sequence[str]) -> list[int]:
    present = ZHANG_COLUMNS.get(width)
    if present is None:
        raise ValueError(
            f"{path} has {width} columns; 2 (class, text) or 3 (class, title, description) are read. "
            "For other files set data=files."
        )
    for name in wanted:
        if name not in present:
            raise ValueError(
                f"data.text_columns names '{name}', but the {width} columns of {path} are: class, "
                f"{', '.join(present)}.{nearest(name, present)} Set data.text_columns=[{','.join(present)}]."
            )
    return [1 + present.index(name) for name in wanted]


def _zhang_label(field: str, names: Sequence[str] | None, place: str) -> str | None:
    number = field.strip()
    if not number:
        return None
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(
            f"{place}: the class is '{number[:20]}'; these files have no header and start each line with a "
            "class number from 1. For files with a header set data=files."
        )
    if names is not None and int(number) > len(names):
        raise ValueError(
            f"{place}: class {number}, but data.label_names has {len(names)} names "
            f"({', '.join(names)}). Name every class, in the order of the numbers."
        )
    return names[int(number) - 1] if names is not None else str(int(number))


def read_jsonl(path: Path, columns: Columns, form: FileForm) -> Table:
    """Read a file of one JSON object a line. Raises as `read_file` does."""
    rows, lines, seen = list[dict[str, Any]](), list[int](), dict[str, None]()
    with path.open(encoding=form.codec, newline="\n") as file:
        try:
            for line, content in enumerate(file, start=1):
                if content.strip():
                    rows.append(_json_object(path, line, content))
                    lines.append(line)
                    seen |= dict.fromkeys(rows[-1])
        except UnicodeError:
            raise ValueError(undecodable(path, form)) from None
    if rows:
        require_columns(columns, list(seen), str(path))
    texts, labels = list[str | None](), list[str | None]()
    for line, row in zip(lines, rows, strict=True):
        place = f"{path}, line {line}"
        texts.append(join_texts([as_text(row.get(name), name, place) for name in columns.text]))
        labels.append(as_label(row.get(columns.label), columns.label, place))
    return filled_table(path, texts, labels, lines)


def _json_object(path: Path, line: int, content: str) -> dict[str, Any]:
    try:
        row = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {line}: not valid JSON ({error.msg} at column {error.colno}). "
            "Write one whole JSON object on each line."
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {line}: not a JSON object. Write {{...}} with named fields.")
    return row


def read_parquet(path: Path, columns: Columns, form: FileForm) -> Table:
    """Read a Parquet file; a row's place is its number from 1. Raises as `read_file` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def broken(error: Exception) -> ValueError:
        return ValueError(
            f"{path} is not a readable Parquet file ({first_line(error)}). Write or copy it anew."
        )

    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise broken(error) from None
    require_columns(columns, names, str(path))
    wanted = list(dict.fromkeys([*columns.text, columns.label]))
    try:
        content = pq.ParquetFile(path).read(columns=wanted)
        values = {name: content.column(name).to_pylist() for name in wanted}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise broken(error) from None
    return column_table(str(path), [values[name] for name in columns.text], values[columns.label], columns)


FILE_READERS: dict[str, Callable[[Path, Columns, FileForm], Table]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def filled_table(path: Path, texts: list[str | None], labels: list[str | None], lines: list[int]) -> Table:
    """Table of a file read line by line. Raises ValueError if it holds no example."""
    if not texts:
        raise ValueError(f"{path} is empty: it holds no example. Check that the file was written whole.")
    return Table(str(path), texts, labels, lambda index: f"{path}, line {lines[index]}")


def require_file(path: Path, key: str) -> None:
    """Raise ValueError unless `path` is a file with something in it."""
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{key}: {path} does not exist.{nearest(path.name, siblings)} Correct {key}.")
    if not path.is_file():
        raise ValueError(f"{key}: {path} is a folder; a file is needed. Set {key}=<file>.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes). Check that the file was written whole.")


def undecodable(path: Path, form: FileForm | None, wanted: Sequence[str] = ()) -> str:
    """Message for a file that is not in its encoding, with the first byte that shows it.

    Args:
        form: None where no setting says it: UTF-8.
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
    return f"{path} is {fault}. Ask whoever exported it for its encoding, and set data.encoding to that."
