"""A site's file of labelled texts, read once for all checks of it. No connection is opened here."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

from client.kit.findings import Options
from common.data.file_form import looks_like
from common.data.read import FILE_READERS, Table, csv_rows, read_file, require_file, undecodable

if TYPE_CHECKING:
    from client.kit.site_file import SiteFile

_KEY = "data.path"


class SiteTexts:
    """A site's file, read once."""

    def __init__(self, site: SiteFile, options: Options) -> None:
        self.site, self.options = site, options
        self.path = site.data_path

    @cached_property
    def header(self) -> list[str] | ValueError:
        """Names of the columns, or why they cannot be read."""
        try:
            require_file(self.path, _KEY)
            if self.path.suffix.lower() not in FILE_READERS:
                raise ValueError(f"{_KEY}: {self.path} is not one of {', '.join(FILE_READERS)}. Convert it.")
            if not os.access(self.path, os.R_OK):
                raise ValueError(f"{_KEY}: {self.path} cannot be read by this user. Give it read access.")
            self.site.form.require_use([self.path])
            return _columns_of(self.site)
        except UnicodeError:  # of JSONL: what reads a CSV tells it in words
            return ValueError(undecodable(self.path, self.site.form))
        except ValueError as error:
            return error

    @cached_property
    def missing(self) -> list[str]:
        """Columns of the site file that the file does not have."""
        assert not isinstance(self.header, ValueError)
        return [name for name in self.site.columns.names if name not in self.header]

    @cached_property
    def other_form(self) -> str | None:
        """Where columns are missing: what the file looks like and what to set, if it is in another form."""
        is_csv = self.path.suffix.lower() == ".csv"
        return looks_like(self.path, self.site.form, self.site.columns.names) if is_csv else None

    @cached_property
    def table(self) -> Table | ValueError:
        """All rows, or why they cannot be read."""
        if isinstance(self.header, ValueError):
            return self.header
        try:
            return read_file(self.path, self.site.columns, _KEY, self.site.form)
        except ValueError as error:
            return error
        except OSError as error:
            return ValueError(f"{_KEY}: {self.path} cannot be read: {error.strerror}. Check its permissions.")

    @cached_property
    def texts(self) -> list[str]:
        """Every text that is one."""
        assert isinstance(self.table, Table)
        return [text for text in self.table.texts if text and not text.isspace()]

    @cached_property
    def label_counts(self) -> Counter[str]:
        """Examples with a text, by their own label name."""
        assert isinstance(self.table, Table)
        rows = zip(self.table.texts, self.table.labels, strict=True)
        return Counter(label for text, label in rows if label is not None and text and not text.isspace())


def _columns_of(site: SiteFile) -> list[str]:
    """Names of the columns: of a JSONL file, all keys of its first rows."""
    path, kind = site.data_path, site.data_path.suffix.lower()
    if kind == ".csv":
        return next(csv_rows(path, site.form, site.columns.names), (0, list[str]()))[1]
    if kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable Parquet file ({error}). Write it anew.") from None
    names: dict[str, None] = {}
    with path.open(encoding=site.form.codec) as file:
        for _, line in zip(range(1000), file, strict=False):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError:
                break  # read_file names the line
            names |= dict.fromkeys(row) if isinstance(row, dict) else {}
    return list(names)
