"""Files of one's own: a CSV, JSONL or Parquet file, or a folder with one for each site."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.common.data.file_readers import FILE_READERS, read_file
from wardround.common.data.sources.source import Source, local_path, require_not_saved
from wardround.common.data.tables import Columns
from wardround.common.data.values import readable
from wardround.common.tasks.targets import TargetColumns
from wardround.common.words import label_name

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings

_PART = re.compile("[-_.]")
"""Ends the name of a part, as in `train-00000-of-00002` and `part-00000`."""


def read_own_files(settings: DataSettings, target: TargetColumns) -> Source:
    """Read `data.path`, one file or a folder with one file for each site, and `data.test_path`.

    Raises:
        ValueError: as `read_file` does; the folder holds something else; or a setting is for
            another kind of file.
    """
    path = local_path(settings)
    tests = []
    if settings.test_path is not None:
        tests.append(Path(settings.test_path))
    places = [test.resolve() for test in tests]
    if path.resolve() in places:
        raise ValueError(
            f"data.test_path and data.path are both {path}; a test on training texts "
            "says nothing. Set data.test_path to another file, or to null to hold out a "
            "part."
        )
    sites = _site_files(path, tests) if path.is_dir() else []
    files = sites or [path]
    form = settings.form
    form.require_use([*files, *tests])
    columns = Columns(settings.text_columns, target)
    # No test text is trained on, so there is nothing to opt out of.
    training_columns = replace(columns, opt_out=settings.opt_out_column)
    test = [read_file(file, columns, "data.test_path", form) for file in tests]
    train = [read_file(file, training_columns, "data.path", form) for file in files]
    names = [file.stem for file in sites]
    return Source(
        tuple(train),
        tuple(test),
        site_names=tuple(names),
    )


def _site_files(folder: Path, tests: Sequence[Path]) -> list[Path]:
    """Return the files of a folder by name, without hidden ones and the test file.

    Raises:
        ValueError: one of them is not the file of a site.
    """
    require_not_saved(folder, "data.path")
    not_sites = [test.resolve() for test in tests]
    files = []
    for file in sorted(folder.iterdir()):
        is_hidden = file.name.startswith(".")
        if not is_hidden and file.resolve() not in not_sites:
            files.append(file)
    stems = [label_name(file.stem).lower() for file in files]
    for file, stem in zip(files, stems, strict=True):
        if readable(file.name) != file.name:
            raise ValueError(
                f"{folder}: the name of file '{readable(file.name)}' is not UTF-8, but it is "
                "the name of a site. Rename the file."
            )
        suffix = file.suffix.lower()
        if not file.is_file() or suffix not in FILE_READERS:
            raise ValueError(
                f"{file} is not one of {', '.join(FILE_READERS)}. As data.path, a folder "
                "holds one such file for each site and nothing else: move this away."
            )
        if stems.count(stem) > 1:
            raise ValueError(
                f"{folder} holds two files for site '{file.stem}'. Merge or rename them."
            )
    if not files:
        raise ValueError(
            f"data.path: folder {folder} is empty. Put one file for each site there."
        )
    _refuse_parts(folder, files)
    return files


def _refuse_parts(folder: Path, files: Sequence[Path]) -> None:
    """Raise ValueError if the files are parts of one data set and not files of sites."""
    by_part = {}
    for file in files:
        first, *_ = _PART.split(file.stem.lower())
        by_part[first] = file
    if by_part.keys() >= {"train", "test"}:
        train = by_part["train"]
        test = by_part["test"]
        raise ValueError(
            f"data.path: {folder} holds {train.name} and {test.name}, which would be "
            f"read as two sites. Set data.path={train} data.test_path={test}"
        )
    if len(files) > 1 and by_part.keys() == {"part"}:
        raise ValueError(
            f"data.path: {folder} holds parts of one data set ({files[0].name} and more), "
            "which would be read as sites. Join them in one file, and set data.path to it."
        )
