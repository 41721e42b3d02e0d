"""Which texts a site has answered for: keyed hashes of each version of its file, never the texts.

Two plans with the same start, on texts that differ by one, give two updates whose difference is that of
this text. So a plan is refused if the texts differ by a few from a version that was answered. A text that
opts out under an approved plan is left out from the next round on; that changes no other text.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.common.credentials import write_secret
from wardround.common.data.file_readers import read_file
from wardround.common.data.opt_outs import LateOptOuts, digest_of_row
from wardround.common.errors import SiteRefusal
from wardround.common.files import write_json

if TYPE_CHECKING:
    from wardround.client.site_file import SiteFile

_KEY = "texts.key"
_KEY_BYTES = 32
_SHOWN = 16
"""Digits of a data file's SHA-256 in the name of its version."""


@dataclass(frozen=True)
class Version:
    """The texts of a file, as hashes under the site's own key."""

    taking_part: Counter[str]
    """With labels, how often each occurs; those that are held out too."""
    opted_out: Counter[str]

    def distance(self, other: Version) -> int:
        """How many texts were added to one to get the other, and how many taken away."""
        added = self.taking_part - other.taking_part
        removed = other.taking_part - self.taking_part
        return added.total() + removed.total()

    def new_opt_outs(self, before: Version) -> frozenset[str] | None:
        """Texts that have opted out since `before`; None if anything else has changed."""
        if self.taking_part + self.opted_out != before.taking_part + before.opted_out:
            return None
        if self.taking_part - before.taking_part:
            return None
        return frozenset(before.taking_part - self.taking_part)


class Versions:
    """The versions of a site's texts below its state folder."""

    def __init__(self, site: SiteFile) -> None:
        self._site = site
        self._plans = site.state / "plans"

    def read(self) -> Version:
        """The file as it is now. Raises ValueError or OSError if it cannot be read."""
        site, key = self._site, self.key()
        table = read_file(site.data_path, site.columns, "data.path", site.form)
        out = set(table.opted_out)
        names = dict(site.labels)
        hashes = [
            digest_of_row(key, text, names.get(label or "", label))
            for text, label in zip(table.texts, table.labels, strict=True)
        ]
        return Version(
            taking_part=Counter(
                found for row, found in enumerate(hashes) if row not in out
            ),
            opted_out=Counter(hashes[row] for row in out),
        )

    def key(self) -> bytes:
        """Secret of this state folder, made at first use. Raises OSError."""
        path = self._site.state / _KEY
        if not path.exists():
            self._site.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_secret(path, secrets.token_hex(_KEY_BYTES).encode())
        return bytes.fromhex(path.read_text(encoding="ascii"))

    def keep(self, plan: str, data: str, version: Version) -> None:
        """Write down which texts a plan was approved for.

        Args:
            plan: its SHA-256. data: SHA-256 of the file.

        Raises:
            OSError: it cannot be written.
        """
        path = self._path(plan, data)
        told = {"taking_part": version.taking_part, "opted_out": version.opted_out}
        write_json(path, told)
        path.chmod(0o600)

    def kept(self, plan: str, data: str) -> Version | None:
        """The version of an approval; None if it was not written down."""
        path = self._path(plan, data)
        if not path.is_file():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        return Version(Counter(told["taking_part"]), Counter(told["opted_out"]))

    def check_distance(
        self, version: Version, answered: Iterator[tuple[str, str]]
    ) -> None:
        """Raise SiteRefusal if a version differs by a few texts from one that was answered.

        Args:
            answered: SHA-256 of a plan and of the data file of each of its answers.
        """
        least = self._site.policy.min_changed_texts
        for plan, data in answered:
            before = self.kept(plan, data)
            if before is None:
                raise SiteRefusal(
                    "data_too_close",
                    words=(
                        f"'{self._path(plan, data)}' is not there, so that nobody knows which texts plan "
                        f"{plan[:12]} was answered for. Put it back from a copy"
                    ),
                )
            distance = version.distance(before)
            if 0 < distance < least:
                raise SiteRefusal(
                    "data_too_close",
                    words=(
                        f"{distance} texts differ from those that plan {plan[:12]} was answered for; "
                        f"policy.min_changed_texts is {least}. Wait until more have changed"
                    ),
                )

    def late_opt_outs(self, plan: str, data: str) -> LateOptOuts | None:
        """Texts that have opted out since a plan was approved; None if anything else has changed.

        Args:
            plan: its SHA-256. data: SHA-256 of the file that it was approved for.
        """
        before = self.kept(plan, data)
        hashes = None if before is None else self.read().new_opt_outs(before)
        return None if hashes is None else LateOptOuts(self.key(), hashes)

    def _path(self, plan: str, data: str) -> Path:
        return self._plans / plan / f"texts-{data[:_SHOWN]}.json"
