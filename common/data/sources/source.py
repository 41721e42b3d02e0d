"""The tables of one source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.common.data.tables import Table

if TYPE_CHECKING:
    from wardround.common.settings.data import DataSettings


_SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class Source:
    """The tables that a reader found, not checked yet."""

    train: tuple[Table, ...]
    """One table, or one for each site."""
    test: tuple[Table, ...] = ()
    """() if the source has no test set: a part of training is then held out."""
    site_names: tuple[str, ...] = ()
    """Names of the sites of `train`; () if the source has no sites."""
    label_names: tuple[str, ...] | None = None
    """Labels in the order of their numbers; None if the source does not give it."""


def require_not_saved(folder: Path, key: str) -> None:
    """Raise ValueError if `save_to_disk` of datasets wrote this folder."""
    if not any((folder / name).is_file() for name in _SAVED_BY_DATASETS):
        return
    raise ValueError(
        f"{key}: {folder} was written by save_to_disk of datasets, whose files are not read "
        "here. In Python: open it with datasets.load_from_disk, and write each split with "
        "to_parquet to <new folder>/data/<split>-00000-of-00001.parquet. Set "
        "data.hub_name=<new folder>, or data=files data.path=<one of its files>"
    )


def local_path(settings: DataSettings) -> Path:
    """Return `data.path`, which the settings and `read_source` have checked."""
    assert settings.path is not None
    return Path(settings.path)
