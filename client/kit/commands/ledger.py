"""Commands about the ledger: show, verify, export, accept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.client.kit.commands.options import SITE_FILE, Site
from wardround.client.site_file import load_site_file
from wardround.common.command_line import argument, command, new_app, option

app = new_app(
    "Everything that came to this site and left it: show, verify, export, accept."
)


@command(app)
def show(
    site: Site = SITE_FILE,
    last: Annotated[int, option("--last", "Number of lines.", min=1)] = 40,
) -> None:
    """Print the newest lines of the ledger in plain words, newest last.

    Example:
      wardround-site ledger show --last 100
    """
    from wardround.client.kit import ledger

    typer.echo(ledger.newest_in_words(load_site_file(site), last))


@command(app)
def verify(site: Site = SITE_FILE) -> None:
    """Check that every line of the ledger follows the one before; name the first wrong line.

    Example:
      wardround-site ledger verify

    Exit code: 0 whole, 2 not whole.
    """
    from wardround.client.kit import ledger

    typer.echo(ledger.verify(load_site_file(site)))


@command(app)
def export(
    file: Annotated[Path, argument("FILE", "A new file.")],
    site: Site = SITE_FILE,
) -> None:
    """Copy the ledger into one file, for an audit. It holds no text, label or path.

    Example:
      wardround-site ledger export st_marys.jsonl
    """
    from wardround.client.kit import ledger

    typer.echo(ledger.export(load_site_file(site), file))


@command(app)
def accept(
    missing: Annotated[str, argument("HASH", "The hash that `join` named.")],
    site: Site = SITE_FILE,
) -> None:
    """Continue although the ledger lacks a line that the server holds. The ledger records this.

    Example:
      wardround-site ledger accept 5f0c...
    """
    from wardround.client.kit import ledger

    typer.echo(ledger.accept(load_site_file(site), missing))
