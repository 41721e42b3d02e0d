"""The people who approve plans at a site: their keys, and their signed approvals.

    state/approvers.json                 who may approve: name, and public key
    state/plans/<plan>/approvals/        one signed file for each person who approved the plan

A signed approval names the site, the plan and the SHA-256 of the data file. It counts for
this plan on these texts alone, and only while its person is an approver here.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.common.credentials import (
    check_public_line,
    fingerprint,
    public_line,
    replace_secret,
)
from wardround.common.errors import NotAuthentic
from wardround.common.files import write_text
from wardround.common.wire.signing import Seconds, Sha256, open_envelope, sign
from wardround.common.words import NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE_NAME = "approvers.json"
FOLDER = "approvals"
_APPROVAL = "application/vnd.wardround.approval+json"
_KEYS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Approval:
    """The statement that one person signs."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    version: Literal[1]
    site: str
    plan: Sha256
    data: Sha256
    """SHA-256 of the data file."""
    name: str
    at: Seconds
    """Seconds since 1970."""


_ADAPTER: TypeAdapter[Approval] = TypeAdapter(Approval)


class Approvers:
    """The file `approvers.json` of a site's state."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILE_NAME
        self._plans = state / "plans"

    def keys(self) -> dict[str, str]:
        """Return the public key of each person by name, OpenSSH form.

        Raises:
            ValueError: the file is damaged.
            OSError: the file cannot be read.
        """
        if not self._file.exists():
            return {}
        try:
            keys = _KEYS.validate_json(self._file.read_bytes())
            return {
                name: check_public_line(key, "signing")
                for name, key in sorted(keys.items())
            }
        except (ValidationError, ValueError):
            raise ValueError(
                f"'{self._file}' is damaged. Move it away, and add each person again: "
                "wardround-site approvers add NAME --key FILE"
            ) from None

    def add(self, name: str, key: str) -> str:
        """Let a person approve plans. Return the fingerprint of the key.

        Args:
            key: public half of an Ed25519 key, OpenSSH form.

        Raises:
            ValueError: the name is not allowed or has another key, or the key has
                another name.
            OSError: the file cannot be written.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                f"NAME is '{name}'; it may hold small letters, digits, - and _."
            )
        line = check_public_line(key, "signing")
        keys = self.keys()
        if keys.get(name, line) != line:
            raise ValueError(
                f"{name} has another key here. If the person has a new key, first: "
                f"wardround-site approvers remove {name}"
            )
        others = [
            other for other, known in keys.items() if known == line and other != name
        ]
        if others:
            raise ValueError(
                f"this is the key of {others[0]}. Each person needs a key of their own."
            )
        self._write(keys | {name: line})
        return fingerprint(line)

    def remove(self, name: str) -> None:
        """Remove a person. The person's approvals do not count any more either.

        Raises:
            ValueError: there is no such person.
            OSError: the file cannot be written.
        """
        keys = self.keys()
        if name not in keys:
            raise ValueError(
                f"NAME is '{name}'. Approvers here: {', '.join(keys) or 'no one'}."
            )
        for path in self._plans.glob(f"*/{FOLDER}/{name}.json"):
            path.unlink()
        del keys[name]
        self._write(keys)

    def name_of(self, name: str, key: Ed25519PrivateKey) -> str:
        """Check that a person is an approver and that the private key is theirs.

        Returns:
            The name.

        Raises:
            ValueError: the person is not an approver, or the key is another one.
            OSError: the file of approvers cannot be read.
        """
        keys = self.keys()
        if name not in keys:
            raise ValueError(
                f"--as is '{name}'. Approvers here: {', '.join(keys) or 'no one'}. "
                "Next: wardround-site approvers add NAME --key FILE"
            )
        if public_line(key) != keys[name]:
            raise ValueError(
                f"--key is not the key of {name}, which is {fingerprint(keys[name])}."
            )
        return name

    def _write(self, keys: Mapping[str, str]) -> None:
        in_order = dict(sorted(keys.items()))
        content = _KEYS.dump_json(in_order, indent=2)
        replace_secret(self._file, content)


def put(
    folder: Path, site: str, plan: str, data: str, name: str, key: Ed25519PrivateKey
) -> None:
    """Keep one person's signed approval.

    Args:
        folder: the plan's folder in the site's state.
        data: SHA-256 of the data file.

    Raises:
        OSError: it cannot be written.
    """
    envelope = sign(_APPROVAL, Approval(1, site, plan, data, name, time.time()), key)
    path = folder / FOLDER / f"{name}.json"
    path.parent.mkdir(exist_ok=True, mode=0o700)
    write_text(path, envelope, "ascii")


def who_approved(
    folder: Path, site: str, plan: str, data: str, keys: Mapping[str, str]
) -> dict[str, str]:
    """Return the key's fingerprint of each person whose approval counts, by name.

    Args:
        folder: the plan's folder in the site's state.
        data: SHA-256 of the data file.
        keys: public keys of the approvers, by name.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for name, key in keys.items():
        path = folder / FOLDER / f"{name}.json"
        if not path.is_file():
            continue
        try:
            signed = open_envelope(path.read_text("ascii"), _APPROVAL, [key])
            approval = _ADAPTER.validate_json(signed)
        except (NotAuthentic, ValidationError, UnicodeDecodeError):
            continue  # signed with an older key of this person, or damaged
        named = (approval.site, approval.plan, approval.data, approval.name)
        if named == (site, plan, data, name):
            found[name] = fingerprint(key)
    return found


def forget(folder: Path) -> None:
    """Delete all approvals in a plan's folder. Raises OSError."""
    if (folder / FOLDER).exists():
        shutil.rmtree(folder / FOLDER)
