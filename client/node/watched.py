"""The site's own file while `join` runs: every task goes by what it says now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wardround.client.site_file import SiteFile, load_site_file
from wardround.common.errors import SiteRefusal

_FIXED = {
    "name": "name",
    "server_address": "server.address",
    "ca": "server.ca",
    "coordinator_key": "server.signing_key",
    "private_key": "key.private",
    "public_key": "key.public",
    "signing_key": "key.signing",
    "state": "state",
}
"""What the connection, the journal and the ledger were opened with, by the keys of the file."""


class WatchedFile:
    """A site file that is read again after every change."""

    def __init__(self, path: Path, site: SiteFile, say: Callable[[str], None]) -> None:
        """Args: site: what the file said when `join` started. say: tells a person one line."""
        self._path, self._say = path, say
        self._start = self._site = site
        self._stamp: tuple[int, ...] | None = None
        self._trouble = ""

    def now(self) -> SiteFile:
        """What the file says now; what needs a restart is as it was at the start.

        Raises:
            SiteRefusal: `bad_input`: it cannot be read, or is wrong.
        """
        try:
            stamp = _stamp_of(self._path)
            if stamp != self._stamp:
                self._take(load_site_file(self._path))
                self._stamp = stamp
        except (OSError, ValueError) as error:
            self._stamp = None  # it is read again with every message, until it is right
            self._tell(
                f"{self._path}: {error.strerror}."
                if isinstance(error, OSError)
                else str(error)
            )
            raise SiteRefusal(
                "bad_input", words=f"{self._path} cannot be used"
            ) from None
        if self._trouble:
            self._say(f"{self._path} is right again")
        self._trouble = ""
        return self._site

    def _tell(self, trouble: str) -> None:
        """Say what is wrong with the file, once."""
        if trouble != self._trouble:
            self._say(f"{trouble} No task is answered until this file is right again.")
        self._trouble = trouble

    def _take(self, read: SiteFile) -> None:
        kept = replace(read, **{field: getattr(self._start, field) for field in _FIXED})
        changed = [
            key
            for field, key in _FIXED.items()
            if getattr(read, field) != getattr(kept, field)
        ]
        if changed:
            self._say(
                f"{self._path}: {', '.join(changed)} has changed, which counts after a restart of "
                "wardround-site join only"
            )
        if kept != self._site:
            self._say(
                f"{self._path} has changed: it counts from now on, its policy too"
            )
        self._site = kept


def _stamp_of(path: Path) -> tuple[int, ...]:
    """Changes with every write to a file. Raises OSError."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
