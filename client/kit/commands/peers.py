"""Commands about other hospitals' keys: peers add, list, remove."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wardround.client.kit.commands.options import SITE_FILE, Site
from wardround.client.kit.peers import peers_in_words, pin
from wardround.client.peers import Peers
from wardround.client.site_file import load_site_file
from wardround.common.command_line import argument, command, new_app, option

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
    known_as, pinned = pin(
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
    typer.echo("\n".join(peers_in_words(site)))


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
