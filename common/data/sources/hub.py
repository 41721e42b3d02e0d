"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wardround.common.data.sources.source import Source, require_not_saved
from wardround.common.data.tables import (
    Columns,
    Rows,
    Table,
    find_columns,
    numbered,
    table_of,
)
from wardround.common.explain import first_line
from wardround.common.tasks.targets import TargetColumns
from wardround.common.words import label_name

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings

_LOCAL_FORMS = {
    "imdb_folders": (
        "data.path=<the folder aclImdb, with train/ and test/ that hold neg/ and pos/>"
    ),
    "zhang_csv": (
        "data.path=<the folder with train.csv and test.csv of Zhang et al., no header>"
    ),
    "spooky_csv": "data.path=<train.csv with the columns id, text, author>",
    "files": "data.path=<a CSV, JSONL or Parquet file>",
}
_HUB_FOLDER = (
    "data.hub_name=<a folder in hub layout: data/train-*.parquet and "
    "data/test-*.parquet>"
)


def read_hub(settings: DataSettings, target: TargetColumns) -> Source:
    """Read splits `train` and `test` of a hub data set, or of a local folder in hub layout.

    Raises:
        ValueError: the hub is out of reach, the data set is not there, or it lacks a split or
            column.
    """
    splits = load_splits(settings)
    if "train" not in splits:
        raise ValueError(
            f"{settings.hub_name} has no split 'train'; it has: {', '.join(splits)}. "
            "Export the split you want to a file and set data=files data.path=<file>."
        )
    train, *test = (
        hub_table(splits[name], name, settings, target)
        for name in ("train", "test")
        if name in splits
    )
    names = class_names(splits["train"], target)
    return Source((train,), tuple(test), label_names=names)


def load_splits(settings: DataSettings) -> Any:
    """Return the splits by name, downloaded or from the cache (a `datasets.DatasetDict`).

    Raises:
        ValueError: the hub is out of reach, or the data set is not there or cannot be read.
    """
    import datasets
    import httpx
    from huggingface_hub.errors import EntryNotFoundError

    if settings.hub_name is None:
        raise ValueError(
            "data.hub_name is missing; reader 'hub' needs a data set id. Set "
            "data.hub_name=..."
        )
    _require_hub_layout(Path(settings.hub_name))
    known = (OSError, ValueError, RuntimeError, httpx.HTTPError, EntryNotFoundError)
    try:
        return datasets.load_dataset(settings.hub_name, revision=settings.hub_revision)
    except (*known, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, ConnectionError | httpx.TransportError):
            fault = "the hub is out of reach"
        elif isinstance(error, FileNotFoundError):
            fault = "not found"
        else:
            fault = "it cannot be read"
        forms = [_LOCAL_FORMS[settings.local_reader]] if settings.local_reader else []
        raise ValueError(
            f"data.hub_name is {settings.hub_name}: {fault} "
            f"({first_line(error.__cause__ or error)}). To use a local copy, set "
            f"{' or '.join([*forms, _HUB_FOLDER])}."
        ) from None


def _require_hub_layout(folder: Path) -> None:
    """Raise ValueError if this is a folder, but not one in hub layout."""
    if not folder.is_dir():
        return
    require_not_saved(folder, "data.hub_name")
    if not any(folder.rglob("*.parquet")):
        raise ValueError(
            f"data.hub_name: {folder} holds no Parquet file. For CSV or JSONL set data=files "
            f"data.path=<file>, or set {_HUB_FOLDER}."
        )


def hub_table(
    split: Any, name: str, settings: DataSettings, target: TargetColumns
) -> Table:
    """Return texts and targets of one split.

    Raises:
        ValueError: a column is missing, or the labels do not fit `data.label_names`.
    """
    where = f"{settings.hub_name}, split '{name}'"
    columns = _columns(settings, target, split.column_names)
    spelled = find_columns(columns, split.column_names, where)
    values = {column: split[spelled[column]][:] for column in columns.names}
    if target.holds_class:
        given = class_names(split, target)
        order = settings.label_names or given
        if given is not None and order is not None:
            _require_same_labels(order, given, settings.hub_name)
        for column in target.names:
            values[column] = [
                _label(value, order, f"{where}, row {row}")
                for row, value in enumerate(values[column], 1)
            ]
    rows = (
        dict(zip(values, row, strict=True))
        for row in zip(*values.values(), strict=True)
    )
    found = enumerate(rows, start=1)
    return table_of(Rows(where, columns.names, found, numbered(where, "row")), columns)


def _require_same_labels(
    order: Sequence[str], given: Sequence[str], name: str | None
) -> None:
    """Accept other spellings of the labels; refuse another order, which would swap classes."""
    is_reordered = sorted(order) == sorted(given) and list(order) != list(given)
    if len(order) != len(given) or is_reordered:
        raise ValueError(
            f"data.label_names is [{', '.join(order)}], but the labels of {name} are, in "
            f"this order: {', '.join(given)}. Name them all in this order, or set "
            "data.label_names=null."
        )


def class_names(split: Any, target: TargetColumns) -> tuple[str, ...] | None:
    """Return the names of a ClassLabel column in the order of their numbers, or None."""
    if not target.holds_class:
        return None
    (column,) = target.names
    spelled = [
        name for name in split.features if label_name(name) == label_name(column)
    ]
    names = getattr(split.features[spelled[0]], "names", None)
    return tuple(map(label_name, names)) if names else None


def _columns(
    settings: DataSettings, target: TargetColumns, present: Sequence[str]
) -> Columns:
    """Return the columns to read; the hub's AG News joins title and description in `text`."""
    text = settings.text_columns
    if "text" in present and "description" not in present:
        if text == ("title", "description"):
            text = ("text",)
        elif text == ("description",):
            raise ValueError(
                f"data.text_columns is [description], but {settings.hub_name} on the hub "
                "has title and description already joined in 'text'. Set "
                "data.path=<folder with the original train.csv and test.csv>, or "
                "data.text_columns=[text] to keep the title."
            )
    return Columns(text, target)


def _label(value: Any, order: Sequence[str] | None, place: str) -> Any:
    """Return the name of a label number, which counts from 0; -1 is a missing label."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or (order is None and value >= 0):
        return value
    if value < 0:
        return None
    assert order is not None
    if value >= len(order):
        raise ValueError(
            f"{place}: label number {value}, but there are {len(order)} names "
            f"({', '.join(order)}), counted from 0. Complete data.label_names, in the "
            "order of the numbers."
        )
    return order[value]
