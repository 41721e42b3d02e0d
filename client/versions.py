"""The texts for which a site has answered: only keyed hashes of each version of its file.

Two plans with the same start, on texts that differ by one, give two updates whose difference
comes from this text. So a plan is refused if the texts differ by a few from an answered version.
A text that opts out under an approved plan is left out from the next round on, which changes no
other text.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wardround.client.site_file import SiteFile
from wardround.common.credentials import write_secret
from wardround.common.data.file_readers import read_file
from wardround.common.data.opt_outs import LateOptOuts, digest_of_row
from wardround.common.errors import SiteRefusal
from wardround.common.files import write_json

_KEY = "texts.key"
_KEY_BYTES = 32
_SHOWN = 16
"""Digits of a data file's SHA-256 in the file name of its version."""


@dataclass(frozen=True)
class Version:
    """The texts of a file, as hashes under the site's own key."""

    taking_part: Counter[str]
    """Hashes of texts with their labels, held-out ones too, and how often each occurs."""
    opted_out: Counter[str]
    """The same for texts that have opted out."""

    def distance(self, other: Version) -> int:
        """Return the number of texts added plus the number of texts removed."""
        added = self.taking_part - other.taking_part
        removed = other.taking_part - self.taking_part
        return added.total() + removed.total()

    def new_opt_outs(self, before: Version) -> frozenset[str] | None:
        """Return the texts that have opted out since; None if anything else has changed."""
        if self.taking_part + self.opted_out != before.taking_part + before.opted_out:
            return None
        if self.taking_part - before.taking_part:
            return None
        return frozenset(before.taking_part - self.taking_part)


class Versions:
    """The versions of a site's texts, in files of its state folder."""

    def __init__(self, site: SiteFile) -> None:
        self._site = site
        self._plans = site.state / "plans"

    def read(self) -> Version:
        """Read the current version of the file. Raises ValueError or OSError."""
        site = self._site
        key = self.key()
        columns = site.renamed_columns
        table = read_file(site.data_path, columns, "data.path", site.form)
        out = set(table.opted_out)
        hashes = [
            digest_of_row(key, text, target)
            for text, target in zip(table.texts, table.targets, strict=True)
        ]
        return Version(
            taking_part=Counter(
                found for row, found in enumerate(hashes) if row not in out
            ),
            opted_out=Counter(hashes[row] for row in out),
        )

    def key(self) -> bytes:
        """Return the secret of this state folder, created at first use. Raises OSError."""
        path = self._site.state / _KEY
        if not path.exists():
            self._site.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_secret(path, secrets.token_hex(_KEY_BYTES).encode())
        return bytes.fromhex(path.read_text(encoding="ascii"))

    def keep(self, plan: str, data: str, version: Version) -> None:
        """Write the version of the texts for which a plan is approved.

        Args:
            plan: SHA-256 of the plan.
            data: SHA-256 of the file.

        Raises:
            OSError: it cannot be written.
        """
        path = self._path(plan, data)
        counts = {"taking_part": version.taking_part, "opted_out": version.opted_out}
        write_json(path, counts)
        path.chmod(0o600)

    def kept(self, plan: str, data: str) -> Version | None:
        """Return the version of an approval; None if there is no file."""
        path = self._path(plan, data)
        if not path.is_file():
            return None
        counts = json.loads(path.read_text(encoding="utf-8"))
        return Version(Counter(counts["taking_part"]), Counter(counts["opted_out"]))

    def check_distance(
        self, version: Version, answered: Iterator[tuple[str, str]]
    ) -> None:
        """Raise SiteRefusal if a version differs by a few texts from an answered one.

        Args:
            answered: for each answer, the SHA-256 of its plan and of its data file.
        """
        least = self._site.policy.min_changed_texts
        for plan, data in answered:
            before = self.kept(plan, data)
            if before is None:
                raise SiteRefusal(
                    "data_too_close",
                    words=(
                        f"'{self._path(plan, data)}' is missing. It lists the texts for which plan "
                        f"{plan[:12]} was answered. Restore it from a backup"
                    ),
                )
            distance = version.distance(before)
            if 0 < distance < least:
                raise SiteRefusal(
                    "data_too_close",
                    words=(
                        f"{distance} texts differ from those for which "
                        f"plan {plan[:12]} was answered; policy.min_changed_texts is {least}. "
                        f"Wait until more have changed"
                    ),
                )

    def late_opt_outs(self, plan: str, data: str) -> LateOptOuts | None:
        """Return the texts that have opted out since an approval, or None.

        None means that anything else has changed.

        Args:
            plan: SHA-256 of the plan.
            data: SHA-256 of the file for which it was approved.
        """
        before = self.kept(plan, data)
        hashes = None if before is None else self.read().new_opt_outs(before)
        return None if hashes is None else LateOptOuts(self.key(), hashes)

    def _path(self, plan: str, data: str) -> Path:
        return self._plans / plan / f"texts-{data[:_SHOWN]}.json"
