"""A data set of the hub, or a local folder in hub layout, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.data.tables import Columns, Table, column_table, require_columns
from common.errors import first_line

if TYPE_CHECKING:
    from common.settings import DataSettings


def load_splits(settings: DataSettings) -> Any:
    """Splits by name, downloaded or out of the cache (a `datasets.DatasetDict`).

    Raises:
        ValueError: the hub is out of reach, or the data set is not there or cannot be read.
    """
    import datasets
    import httpx
    from huggingface_hub.errors import EntryNotFoundError

    if settings.hub_name is None:
        raise ValueError("data.hub_name is missing; reader 'hub' needs a data set id. Set data.hub_name=...")
    known = (OSError, ValueError, RuntimeError, httpx.HTTPError, EntryNotFoundError)
    try:
        return datasets.load_dataset(settings.hub_name, revision=settings.hub_revision)
    except (*known, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, ConnectionError | httpx.TransportError):
            what = "the hub is out of reach"
        elif isinstance(error, FileNotFoundError):
            what = "not found"
        else:
            what = "it cannot be read"
        raise ValueError(
            f"data.hub_name is {settings.hub_name}: {what} ({first_line(error.__cause__ or error)}). "
            f"To use a local copy, set {_local_form(settings)}."
        ) from None


def _local_form(settings: DataSettings) -> str:
    forms = {
        "imdb_folders": "data.path=<the folder aclImdb, with train/ and test/ that hold neg/ and pos/>",
        "zhang_csv": "data.path=<the folder with train.csv and test.csv of Zhang et al., no header>",
        "spooky_csv": "data.path=<train.csv with the columns id, text, author>",
        "files": "data.path=<a CSV, JSONL or Parquet file>",
    }
    folder = "data.hub_name=<a folder in hub layout: data/train-*.parquet and data/test-*.parquet>"
    return " or ".join([*([forms[settings.local_reader]] if settings.local_reader else []), folder])


def hub_table(split: Any, name: str, settings: DataSettings) -> Table:
    """Texts and labels of one split.

    Raises:
        ValueError: a column is missing, or the labels do not fit `data.label_names`.
    """
    where = f"{settings.hub_name}, split '{name}'"
    columns = _hub_columns(settings, split.column_names)
    require_columns(columns, split.column_names, where)
    given = class_names(split, columns.label)
    order = settings.label_names or given
    if given is not None and order is not None:
        _require_same_labels(order, given, settings.hub_name)
    numbers = split[columns.label][:]
    labels = [_hub_label(value, order, f"{where}, row {row + 1}") for row, value in enumerate(numbers)]
    return column_table(where, [split[column][:] for column in columns.text], labels, columns)


def _require_same_labels(order: Sequence[str], given: Sequence[str], name: str | None) -> None:
    """Other spellings are welcome, another order of the same names would swap classes."""
    if len(order) != len(given) or (sorted(order) == sorted(given) and list(order) != list(given)):
        raise ValueError(
            f"data.label_names is [{', '.join(order)}], but the labels of {name} are, in this order: "
            f"{', '.join(given)}. Name them all in this order, or set data.label_names=null."
        )


def class_names(split: Any, column: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel column in the order of their numbers; None for any other column."""
    names = getattr(split.features[column], "names", None)
    return tuple(names) if names else None


def _hub_columns(settings: DataSettings, present: Sequence[str]) -> Columns:
    """The hub's AG News has title and description joined in one column `text`."""
    text = settings.text_columns
    if "text" in present and "description" not in present:
        if text == ("title", "description"):
            text = ("text",)
        elif text == ("description",):
            raise ValueError(
                f"data.text_columns is [description], but {settings.hub_name} on the hub has title and "
                "description already joined in 'text'. Set data.path=<folder with the original train.csv "
                "and test.csv>, or data.text_columns=[text] to keep the title."
            )
    return Columns(text, settings.label_column)


def _hub_label(value: Any, order: Sequence[str] | None, place: str) -> Any:
    """Numbers count through `order` from 0; the hub writes -1 where there is no label."""
    if not isinstance(value, int) or isinstance(value, bool) or (order is None and value >= 0):
        return value
    if value < 0:
        return None
    assert order is not None
    if value >= len(order):
        raise ValueError(
            f"{place}: label number {value}, but there are {len(order)} names ({', '.join(order)}), "
            "counted from 0. Complete data.label_names, in the order of the numbers."
        )
    return order[value]
