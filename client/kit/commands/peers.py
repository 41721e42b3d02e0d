"""Commands about other hospitals' keys: peers add, list, remove."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wardround.client.kit.commands.options import SITE_FILE, Site
from wardround.client.peers import Peers, Pin
from wardround.client.site_file import load_site_file, signing_keys
from wardround.common.command_line import argument, command, new_app, option
from wardround.common.credentials import check_public_line, public_line
from wardround.common.wire.invitation import (
    Registration,
    read_document,
    registration_file,
)
from wardround.common.words import printable

app = new_app("The hospitals whose keys are pinned here: add, list, remove.")


@command(app)
def add(
    registration: Annotated[
        Path,
        argument("FILE", "The other hospital's registration-NAME.json."),
    ],
    name: Annotated[
        str | None,
        option("--name", "Its name in plans, if the file has another.", "NAME"),
    ] = None,
    fingerprint: Annotated[
        str | None,
        option("--fingerprint", "As that hospital reads it out; default: ask."),
    ] = None,
    site: Site = SITE_FILE,
) -> None:
    """Pin another hospital's key. A plan that names it with another key is then refused.

    Examples:
      wardround-site peers add lakeside.json
      wardround-site peers add lakeside.json --fingerprint SHA256:...

    Get the file from that hospital, and compare its fingerprint with that hospital by
    telephone. It sees its own with `wardround-site peers list`.
    """
    known_as, pinned = _pin(
        site, registration, name, partial(_compare, given=fingerprint)
    )
    typer.echo(f"Pinned: {known_as}, whose key is {pinned.key}")


def _compare(found: str, given: str | None) -> None:
    """Show a fingerprint, and compare it with the one that was read out.

    Raises:
        ValueError: they differ, or there is no terminal to ask at.
    """
    typer.echo(f"The fingerprint of this registration is  {found}")
    if given is None:
        if not sys.stdin.isatty():
            raise ValueError(
                "--fingerprint is missing, and there is no terminal to ask at. Give it "
                "as the other hospital reads it out by telephone."
            )
        typer.confirm(
            "Does the other hospital read out the same by telephone?", abort=True
        )
    elif given.strip() != found:
        raise ValueError(
            f"--fingerprint is '{given}', but the fingerprint of the file is {found}. "
            "Ask the other hospital by telephone, and pin nothing until they are the same."
        )


@command(app, name="list")
def list_peers(site: Site = SITE_FILE) -> None:
    """List the hospitals whose keys are pinned here, and this site's own fingerprint.

    Example:
      wardround-site peers list
    """
    typer.echo("\n".join(_peers_in_words(site)))


def _pin(
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


def _peers_in_words(site_file: Path) -> Iterator[str]:
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


@command(app)
def remove(
    name: Annotated[str, argument("NAME", "From `peers list`.")],
    site: Site = SITE_FILE,
) -> None:
    """Remove the pinned key of a hospital.

    Example:
      wardround-site peers remove lakeside
    """
    Peers.open(load_site_file(site).state).remove(name)
    typer.echo(f"{name} is no longer pinned")
