"""CSV files in the form in which a data set was published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.common.data.file_readers import csv_rows, read_csv, require_file
from wardround.common.data.sources.source import Source, local_path
from wardround.common.data.tables import Columns, Rows, Table, numbered, table_of
from wardround.common.data.values import join_texts
from wardround.common.explain import nearest
from wardround.common.tasks.targets import TargetColumns

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings

ZHANG_COLUMNS = {2: ("text",), 3: ("title", "description")}
"""Columns after the class in files of Zhang et al. (2015), by the number of all columns."""


def read_zhang_folder(settings: DataSettings, target: TargetColumns) -> Source:
    """Read train.csv and test.csv of Zhang et al. (2015).

    Raises:
        ValueError: as `read_zhang_csv` does, or a file is missing.
    """
    files = [local_path(settings) / name for name in ("train.csv", "test.csv")]
    for file in files:
        require_file(file, "data.path")
    train, test = (
        read_zhang_csv(file, settings.text_columns, settings.label_names, target)
        for file in files
    )
    return Source((train,), (test,))


def read_zhang_csv(
    path: Path,
    text_columns: Sequence[str],
    label_names: Sequence[str] | None,
    target: TargetColumns,
) -> Table:
    """Read a CSV of Zhang et al. (2015): no header, class number from 1, then the texts.

    A quote is doubled and a line break is written as backslash and n, as the readme of the
    source says. There is no other escape, so any other backslash stays.

    Raises:
        ValueError: the file is broken or not UTF-8, or a class number has no name.
    """

    def rows() -> Iterator[tuple[int, dict[str, str | None]]]:
        positions: list[int] = []
        for line, row in csv_rows(path):
            positions = positions or _positions(path, len(row), text_columns)
            parts = [row[position].replace("\\n", "\n") for position in positions]
            label = _class_name(row[0], label_names, f"{path}, line {line}")
            yield line, {"text": join_texts(parts), "label": label}

    columns = Columns(("text",), replace(target, names=("label",)))
    place = numbered(str(path), "line")
    return table_of(Rows(str(path), columns.names, rows(), place), columns)


def _positions(path: Path, width: int, wanted: Sequence[str]) -> list[int]:
    present = ZHANG_COLUMNS.get(width)
    if present is None:
        raise ValueError(
            f"{path} has {width} columns; 2 (class, text) or 3 (class, title, "
            "description) are read. For other files set data=files."
        )
    for name in wanted:
        if name not in present:
            raise ValueError(
                f"data.text_columns names '{name}', but the {width} columns of {path} "
                f"are: class, {', '.join(present)}.{nearest(name, present)} Set "
                f"data.text_columns=[{','.join(present)}]."
            )
    return [1 + present.index(name) for name in wanted]


def _class_name(field: str, names: Sequence[str] | None, place: str) -> str | None:
    number = field.strip()
    if not number:
        return None
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(
            f"{place}: the class is '{number[:20]}'; these files have no header and "
            "start each line with a class number from 1. For files with a header set "
            "data=files."
        )
    if names is None:
        return str(int(number))
    if int(number) > len(names):
        raise ValueError(
            f"{place}: class {number}, but data.label_names has {len(names)} names "
            f"({', '.join(names)}). Name every class, in the order of the numbers."
        )
    return names[int(number) - 1]


def read_spooky_csv(settings: DataSettings, target: TargetColumns) -> Source:
    """Read train.csv (`id,text,author`) of Spooky Author Identification.

    Its test file has no labels.

    Raises:
        ValueError: as `read_file` does.
    """
    path = local_path(settings)
    require_file(path, "data.path")
    columns = Columns(settings.text_columns, target)
    return Source((read_csv(path, columns),))
