"""Commands about the people who approve plans: approvers add, list, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.client.approvals import Approvers
from wardround.client.kit.commands.options import SITE_FILE, Site
from wardround.client.site_file import load_site_file
from wardround.common.command_line import argument, command, new_app, option
from wardround.common.credentials import fingerprint

app = new_app(
    "The people who approve plans, if the policy asks for two: add, list, remove."
)


def _approvers(site: Path) -> Approvers:
    return Approvers(load_site_file(site).state)


@command(app)
def add(
    name: Annotated[str, argument("NAME", "Small letters, digits, - and _.")],
    key: Annotated[Path, option("--key", "The person's public key (.pub).", "FILE")],
    site: Site = SITE_FILE,
) -> None:
    """Let a person approve plans here, with a key of the person's own.

    Example:
      wardround-site approvers add anna --key anna.pub

    Make the key pair with: ssh-keygen -t ed25519 -N "" -f anna. Only that person may
    have the private key, for example on a stick. `policy.approvals: 2` in site.yaml asks
    for two people.
    """
    try:
        line = key.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--key is '{key}', which cannot be read ({error}). Give the .pub file."
        ) from None
    found = _approvers(site).add(name, line)
    typer.echo(f"{name} may approve plans here, with the key {found}")


@command(app, name="list")
def list_approvers(site: Site = SITE_FILE) -> None:
    """List the people who may approve plans here.

    Example:
      wardround-site approvers list
    """
    keys = _approvers(site).keys()
    for name, key in keys.items():
        typer.echo(f"{name:<20}  {fingerprint(key)}")
    if not keys:
        typer.echo("Nobody yet. Next: wardround-site approvers add NAME --key FILE")


@command(app)
def remove(
    name: Annotated[str, argument("NAME", "From `approvers list`.")],
    site: Site = SITE_FILE,
) -> None:
    """Remove a person who approves plans. That person's earlier approvals no longer count.

    Example:
      wardround-site approvers remove anna
    """
    _approvers(site).remove(name)
    typer.echo(f"{name} can no longer approve plans here")
