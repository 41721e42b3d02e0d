"""Local files of labelled texts (CSV, JSONL, Parquet) as tables, in which every row knows its place."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wardround.common.errors import MissingColumn
from wardround.common.explain import first_line, nearest
from wardround.common.file_form import COMMA, FileForm, decoding_fault, looks_like
from wardround.common.words import shown

# A clinical letter can be longer than the csv module's default of 128 KiB.
LONGEST_FIELD = 2**31 - 1
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    text: tuple[str, ...]
    """Joined with one space to make the text."""
    label: str
    """Holds the label."""
    opt_out: str | None = None
    """True where a text takes part in no round; None where no column says so."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (
            *self.text,
            self.label,
            *([] if self.opt_out is None else [self.opt_out]),
        )


@dataclass(frozen=True)
class Table:
    """Texts and labels as they were found, before anything about them is judged."""

    name: str
    """What messages call it: a path, or a split of a data set."""
    texts: list[str | None]
    """None where the text is missing, or blank."""
    labels: list[str | None]
    """None where the label is missing; as long as `texts`."""
    place: Callable[[int], str]
    """Where row i is found, for a person: `a.csv, line 7`."""
    opted_out: tuple[int, ...] = ()
    """Rows that take part in no round, ascending."""
    findings: tuple[str, ...] = ()
    """What a person should be told about how it was read."""

    def keep(self, rows: Sequence[int]) -> Table:
        """The table of these rows alone; each still knows its place."""
        out = set(self.opted_out)
        return replace(
            self,
            texts=[self.texts[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            place=lambda index: self.place(rows[index]),
            opted_out=tuple(index for index, row in enumerate(rows) if row in out),
        )


def table_of(
    name: str,
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    unit: str = "line",
) -> Table:
    """Make a table of rows, each with its number and its values by column.

    Args:
        name: as in `Table`. unit: what the numbers count, for places: `a.csv, line 7`.

    Raises:
        ValueError: there is no row, or a text, label or wish has a type it cannot have.
    """
    numbers, texts, labels, opted_out = (
        list[int](),
        list[str | None](),
        list[str | None](),
        list[int](),
    )
    for number, row in rows:
        place = f"{name}, {unit} {number}"
        texts.append(
            join_texts(
                [as_text(row.get(column), column, place) for column in columns.text]
            )
        )
        labels.append(as_label(row.get(columns.label), columns.label, place))
        if columns.opt_out is not None and as_wish(
            row.get(columns.opt_out), columns.opt_out, place
        ):
            opted_out.append(len(numbers))
        numbers.append(number)
    if not numbers:
        raise ValueError(
            f"{name} is empty: it holds no example. Check that it was written whole."
        )
    return Table(
        name,
        texts,
        labels,
        lambda index: f"{name}, {unit} {numbers[index]}",
        tuple(opted_out),
    )


def join_texts(parts: Sequence[str | None]) -> str | None:
    """The parts that say something, joined with one space; None if none does."""
    return " ".join(part for part in parts if part and not part.isspace()) or None


def as_text(value: Any, column: str, place: str) -> str | None:
    """The value of a text column. Raises ValueError if it is neither a text nor missing."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(
        f"{place}: column '{column}' holds {type(value).__name__} where a text belongs. "
        "Put the text in quotes, or name another column in data.text_columns."
    )


def as_label(value: Any, column: str, place: str) -> str | None:
    """The value of a label column as a name; None if it is missing.

    Raises:
        ValueError: it is neither a text, a truth value nor a whole number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if (
        isinstance(value, float) and value.is_integer()
    ):  # pandas makes whole numbers with gaps floats
        value = int(value)
    if isinstance(value, str | int):
        return str(value).strip() or None
    raise ValueError(
        f"{place}: column '{column}' holds {type(value).__name__}; a label is a name or a whole "
        "number. Name another column in data.label_column."
    )


def as_wish(value: Any, column: str, place: str) -> bool:
    """Whether a row's value in the column of those who opt out says so; a missing one does not.

    Raises:
        ValueError: it is neither a yes nor a no; a wish is not guessed.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if isinstance(value, float) and value.is_integer():  # as for labels
        value = int(value)
    said = str(value).strip().lower()
    if said in _YES or said in _NO:
        return said in _YES
    raise ValueError(
        f"{place}: column '{column}' holds neither a yes ({', '.join(_YES)}) nor a no (false, 0, no or "
        "nothing). Correct it, or name another column in data.opt_out_column."
    )


def require_columns(columns: Columns, present: Sequence[str], where: str) -> None:
    """Raise MissingColumn, naming the columns there are, unless all of `columns` are among them."""
    wanted = [("data.text_columns", name) for name in columns.text] + [
        ("data.label_column", columns.label)
    ]
    there = ", ".join(map(shown, present))
    for key, name in [*wanted, ("data.opt_out_column", columns.opt_out)]:
        if name is not None and name not in present:
            raise MissingColumn(
                f"{where} has no column '{name}'; it has: {there}.{nearest(name, present)} "
                f"Set {key} to the column that holds it."
            )


def read_file(path: Path, columns: Columns, key: str, form: FileForm) -> Table:
    """Read a CSV (with header), JSONL or Parquet file, told apart by its extension.

    Args:
        key: the setting that named the file, for messages.
        form: how it is written; Parquet says that itself.

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

    Args: form: None where no setting says it: comma and UTF-8.
    """
    rows = csv_rows(path, form, columns.names)
    _, header = next(rows, (0, list[str]()))
    if header:
        missing = [name for name in columns.names if name not in header]
        other = (
            looks_like(path, form, columns.names)
            if missing and form is not None
            else None
        )
        if other is not None:
            raise MissingColumn(f"{path} has no column '{missing[0]}'; {other}")
        require_columns(columns, header, str(path))
    for name in columns.names:
        if header.count(name) > 1:
            raise ValueError(
                f"{path}: {header.count(name)} columns are called '{name}'. Rename all but one."
            )
    return table_of(
        str(path),
        ((line, dict(zip(header, row, strict=True))) for line, row in rows),
        columns,
    )


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
            line = (
                reader.line_num + 1
            )  # a quoted field can span lines: name the one it starts on
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
    return (
        f"; {other}"
        if other
        else ". Close every quote that is opened, and double a quote inside a field."
    )


def read_jsonl(path: Path, columns: Columns, form: FileForm) -> Table:
    """Read a file of one JSON object a line. Raises as `read_file` does."""
    with path.open(encoding=form.codec, newline="\n") as file:
        try:
            rows = [
                (line, _json_object(path, line, content))
                for line, content in enumerate(file, start=1)
                if content.strip()
            ]
        except UnicodeError:
            raise ValueError(undecodable(path, form)) from None
    if rows:
        require_columns(
            columns,
            list(dict.fromkeys(key for _, row in rows for key in row)),
            str(path),
        )
    return table_of(str(path), rows, columns)


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
            f"{path} is not a readable Parquet file ({first_line(error)}). Write or copy it anew."
        ) from None
    return table_of(str(path), enumerate(rows, start=1), columns, "row")


FILE_READERS: dict[str, Callable[[Path, Columns, FileForm], Table]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def require_file(path: Path, key: str) -> None:
    """Raise ValueError unless `path` is a file with something in it."""
    if not path.exists():
        siblings = (
            [entry.name for entry in path.parent.iterdir()]
            if path.parent.is_dir()
            else []
        )
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
