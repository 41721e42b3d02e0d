"""The other sites that this site knows by their keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.common.credentials import check_public_line, fingerprint, replace_secret
from wardround.common.files import stamp_of
from wardround.common.wire.invitation import Registration
from wardround.common.words import NAME

FILE_NAME = "peers.json"
UNKNOWN_PEER = "unknown_peer"


@dataclass(frozen=True)
class Pin:
    """The pinned key of another site."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    signing_key: str
    """Public key that verifies its answers, OpenSSH form."""
    registration: str
    """Fingerprint of its registration (SHA256:…), which people compared by telephone."""

    @property
    def key(self) -> str:
        """Fingerprint of `signing_key`, as a plan's roster names it."""
        return fingerprint(self.signing_key)


_PINS: TypeAdapter[dict[str, Pin]] = TypeAdapter(dict[str, Pin])


class Peers(Mapping[str, str]):
    """Fingerprint of the signing key of each pinned site, by the site's name.

    The file is read again after every change, so that a new pin is valid at once, also in
    a running `join`.
    """

    def __init__(self, file: Path) -> None:
        """Use this file, which may be missing."""
        self.file = file
        self._read: tuple[object, dict[str, Pin]] = (None, {})

    @classmethod
    def open(cls, state: Path) -> Peers:
        """Return the pins in a site's state folder."""
        return cls(state / FILE_NAME)

    def pins(self) -> dict[str, Pin]:
        """Return all pins by name, in order of name.

        Raises:
            ValueError: the file is damaged.
            OSError: the file cannot be read.
        """
        try:
            stamp = stamp_of(self.file)
        except FileNotFoundError:
            return {}
        stamp_read, pins = self._read
        if stamp != stamp_read:
            pins = self._parsed(self.file.read_bytes())
            self._read = (stamp, pins)
        return dict(pins)

    def _parsed(self, content: bytes) -> dict[str, Pin]:
        try:
            pins = _PINS.validate_json(content)
            for pin in pins.values():
                check_public_line(pin.signing_key, "signing")
        except (ValidationError, ValueError):
            raise ValueError(
                f"'{self.file}' is damaged. Move it away, and add each hospital again: "
                "wardround-site peers add FILE"
            ) from None
        return dict(sorted(pins.items()))

    def __getitem__(self, name: str) -> str:
        return self.pins()[name].key

    def __iter__(self) -> Iterator[str]:
        return iter(self.pins())

    def __len__(self) -> int:
        return len(self.pins())

    def add(self, name: str, registration: Registration, registered: str) -> Pin:
        """Pin the key of another hospital, after people have compared the fingerprint.

        Args:
            name: the site's name in rosters.
            registered: fingerprint of the registration.

        Raises:
            ValueError: the name is not allowed or has another key, or the key has
                another name.
            OSError: the file cannot be written.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                f"--name is '{name}'; a site's name has 1 to 64 small letters, digits, _ and -. "
                "Use the name in the plan."
            )
        pins = self.pins()
        pin = Pin(check_public_line(registration.signing_key, "signing"), registered)
        if name in pins and pins[name].key != pin.key:
            raise ValueError(
                f"{name} is pinned with another key ({pins[name].key}). Ask that hospital by "
                "telephone why its key has changed; if it has, first: "
                f"wardround-site peers remove {name}"
            )
        others = [
            other
            for other, known in pins.items()
            if known.key == pin.key and other != name
        ]
        if others:
            raise ValueError(
                f"this key is pinned as {others[0]}, and each site has a key of its own. "
                f"If {name} is the right name, first: wardround-site peers remove {others[0]}"
            )
        self._write(pins | {name: pin})
        return pin

    def remove(self, name: str) -> None:
        """Remove a pin.

        Raises:
            ValueError: no site of this name is pinned.
            OSError: the file cannot be written.
        """
        pins = self.pins()
        if name not in pins:
            known = ", ".join(pins) or "no site"
            raise ValueError(f"NAME is '{name}'. Pinned here: {known}.")
        del pins[name]
        self._write(pins)

    def _write(self, pins: Mapping[str, Pin]) -> None:
        in_order = dict(sorted(pins.items()))
        content = _PINS.dump_json(in_order, indent=2)
        replace_secret(self.file, content)
