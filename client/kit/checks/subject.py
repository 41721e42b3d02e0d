"""The site that is checked, and the options of a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from wardround.client.kit.checks.findings import SEE_ABOVE, NotChecked
from wardround.client.kit.link import Link
from wardround.client.site_file import SiteFile
from wardround.common.data.file_readers import read_file
from wardround.common.data.tables import Table

_DATA_KEY = "data.path"


@dataclass(frozen=True)
class Options:
    """The settings of the coming run, as far as the site received them."""

    expect: Mapping[str, str] = field(default_factory=dict)
    """Required versions by package; `python` is one of them."""
    invited: Mapping[str, str] = field(default_factory=dict)
    """The server's versions by package, on the day of the invitation."""
    labels: tuple[str, ...] = ()
    """The consortium's label names; empty if the site did not receive them."""
    model: str | None = None
    """Hub id or folder of the pre-trained model, if site.yaml names no local copy."""
    max_length: int | None = None
    """Tokens after which a text is cut; None if the site does not know it yet."""
    batch_size: int = 32
    """Examples of one optimiser step."""
    timeout_seconds: float = 5.0
    """Longest wait for each step on the network."""


@dataclass(frozen=True)
class Subject:
    """The site that is checked. Each part is read once, when a check first needs it."""

    site: SiteFile
    options: Options

    @cached_property
    def link(self) -> Link:
        """The way to the server."""
        return Link(self.site, self.options.timeout_seconds)

    @cached_property
    def table(self) -> Table | ValueError:
        """All rows of the site's file, or the reason why they cannot be read."""
        path = self.site.data_path
        form = self.site.form
        try:
            form.require_use([path])
            return read_file(path, self.site.columns, _DATA_KEY, form)
        except ValueError as error:
            return error
        except OSError as error:
            return ValueError(
                f"{_DATA_KEY}: {path} cannot be read: {error.strerror}. "
                "Give this user read access to it."
            )

    @property
    def rows(self) -> Table:
        """All rows. Raises NotChecked if the file cannot be read."""
        if isinstance(self.table, Table):
            return self.table
        raise NotChecked("the file could not be read", SEE_ABOVE)

    @cached_property
    def texts(self) -> list[str]:
        """Every text that is not empty."""
        return [text for text in self.rows.texts if text]

    @cached_property
    def label_counts(self) -> Counter[str]:
        """Examples that have a text, counted by the site's own label names."""
        rows = zip(self.rows.texts, self.rows.targets, strict=True)
        return Counter(label for text, label in rows if label is not None and text)
