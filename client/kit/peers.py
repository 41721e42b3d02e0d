"""Pins other hospitals' keys, and describes the pins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from wardround.client.peers import Peers, Pin
from wardround.client.site_file import load_site_file, signing_keys
from wardround.common.credentials import check_public_line, public_line
from wardround.common.wire.invitation import (
    Registration,
    read_document,
    registration_file,
)
from wardround.common.words import printable


def pin(
    site_file: Path,
    registration: Path,
    name: str | None,
    confirm: Callable[[str], None],
) -> tuple[str, Pin]:
    """Pin the key in another hospital's registration.

    Args:
        name: the name of that site in plans; None takes the one in the file.
        confirm: receives the registration's fingerprint. It raises unless people have
            compared it.

    Returns:
        The name, and the pin under it.

    Raises:
        ValueError: the file is no registration, or is this site's own; or as `Peers.add`.
        OSError: the pin cannot be written.
    """
    site = load_site_file(site_file)
    read, found = read_document(Registration, registration)
    chosen = read.site if name is None else name
    own, _ = signing_keys(site)
    key = check_public_line(read.signing_key, "signing")
    if chosen == site.name or key == public_line(own):
        raise ValueError(
            f"'{registration}' has the name or the key of this site itself. Ask the other "
            "hospital for its registration-NAME.json."
        )
    confirm(found)
    pinned = Peers.open(site.state).add(chosen, read, found)
    return chosen, pinned


def peers_in_words(site_file: Path) -> Iterator[str]:
    """Return this site's own fingerprint, then one line for each pin."""
    site = load_site_file(site_file)
    own = _own_registration(site_file.absolute(), site.name)
    if own is not None:
        _, registered = read_document(Registration, own)
        yield (
            f"READ OUT to the other hospitals: this site's registration is {registered}"
        )
    pins = Peers.open(site.state).pins()
    for name, pinned in pins.items():
        yield printable(
            f"{name:<20}  registration {pinned.registration}  key {pinned.key}", None
        )
    if not pins:
        yield "No other hospital is pinned yet. Next: wardround-site peers add FILE"


def _own_registration(site_file: Path, site: str) -> Path | None:
    """Return the file that `init` wrote beside the site's file; None if it is gone."""
    # Earlier versions gave the registration of every site the same name.
    for name in (registration_file(site), "registration.json"):
        file = site_file.with_name(name)
        if file.exists():
            return file
    return None
