"""The site's own file while `join` runs: changes count from the next message on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wardround.client.site_file import SiteFile, load_site_file
from wardround.common.errors import SiteRefusal
from wardround.common.files import stamp_of

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
"""Fields that need a restart of `join`, with their keys in the file."""


class WatchedFile:
    """A site file that is read again after every change."""

    def __init__(self, path: Path, site: SiteFile, say: Callable[[str], None]) -> None:
        """Watch a file.

        Args:
            site: content of the file at the start of `join`.
            say: prints one line for people.
        """
        self._path = path
        self._say = say
        self._start = site
        self._site = site
        self._stamp: tuple[int, ...] | None = None
        self._trouble = ""

    def now(self) -> SiteFile:
        """Return the file's content; fields that need a restart stay as at the start.

        Raises:
            SiteRefusal: `bad_input`: the file cannot be read, or is wrong.
        """
        try:
            stamp = stamp_of(self._path)
            if stamp != self._stamp:
                self._take(load_site_file(self._path))
                self._stamp = stamp
        except (OSError, ValueError) as error:
            self._stamp = None  # it is read again with every message, until it is right
            trouble = str(error)
            if isinstance(error, OSError):
                trouble = f"{self._path}: {error.strerror}."
            self._report(trouble)
            raise SiteRefusal(
                "bad_input", words=f"{self._path} cannot be used"
            ) from None
        if self._trouble:
            self._say(f"{self._path} can be used again")
        self._trouble = ""
        return self._site

    def _report(self, trouble: str) -> None:
        """Print what is wrong with the file, once."""
        if trouble != self._trouble:
            self._say(
                f"{trouble} No task is answered until this file can be used again."
            )
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
                f"{self._path}: {', '.join(changed)} has changed. To use the new value, "
                "restart wardround-site join"
            )
        if kept != self._site:
            self._say(
                f"{self._path} has changed. It is used from now on, with its policy"
            )
        self._site = kept
