"""The table of readers: `data.reader` is the name of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wardround.common.data.sources.hub import read_hub
from wardround.common.data.sources.own_files import read_own_files
from wardround.common.data.sources.published_csv import (
    read_spooky_csv,
    read_zhang_folder,
)
from wardround.common.data.sources.source import Source
from wardround.common.data.sources.text_folders import (
    read_bbc_package,
    read_imdb_folders,
)
from wardround.common.settings.rules import LOCAL_READERS
from wardround.common.tasks.targets import TargetColumns

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings

READERS: dict[str, Callable[[DataSettings, TargetColumns], Source]] = {
    "hub": read_hub,
    "bbc_package": read_bbc_package,
    "imdb_folders": read_imdb_folders,
    "zhang_csv": read_zhang_folder,
    "spooky_csv": read_spooky_csv,
    "files": read_own_files,
}


def read_source(settings: DataSettings, target: TargetColumns) -> Source:
    """Read the source that the settings name; with `data.path`, the local copy of a hub data set.

    Args: target: the columns of what is learned, as `Task.target_columns` returns them.

    Raises:
        ValueError: the source cannot be read.
        OSError: a file cannot be read.
    """
    reader = settings.reader
    if reader == "hub" and settings.path is not None:
        if settings.local_reader is None:
            raise ValueError(
                f"data.path is {settings.path}, but data.local_reader is missing. Set "
                f"data.local_reader to one of {', '.join(LOCAL_READERS)}."
            )
        reader = settings.local_reader
    return READERS[reader](settings, target)
