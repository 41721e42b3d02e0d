"""The server app opens its ticket: settings, and the clients that sign with the run's key.

Apart from `ticket.py`, because `wardround submit` writes tickets and does without Flower's grid,
which takes a second to import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.serverapp import Grid

from wardround.common.errors import RunFailed
from wardround.common.settings.tree import Settings
from wardround.server.deployment.audit import AnswerBook
from wardround.server.deployment.folder import RegisteredSite, ServerFolder
from wardround.server.deployment.runtime_link import Runtime
from wardround.server.deployment.signed_clients import RunKey, SignedClients
from wardround.server.deployment.ticket import Draft, ticket_path
from wardround.server.run_folder import RunFolder

FOLDER = "WARDROUND_SERVER_DIR"
"""Environment variable with the server folder, which the SuperLink sets for its server apps."""
_NAME = re.compile("[0-9a-f]{32}")


def open_ticket(
    name: str, grid: Grid
) -> tuple[Settings, SignedClients, dict[str, int | None]]:
    """Read and delete a ticket.

    Returns:
        Settings, clients, and the limit on the texts that each site may report, by name.

    Raises:
        RunFailed: there is no such ticket, or it was used.
    """
    if not _NAME.fullmatch(name):
        raise RunFailed(
            "the run config names no ticket. Submit the run with: wardround submit"
        )
    folder = ServerFolder(Path(os.environ.get(FOLDER, "")))
    ticket = _take(ticket_path(folder.path, name))
    settings = ticket.settings
    sites = ticket.sites
    key: Any = load_ssh_private_key(ticket.key.encode("ascii"), None)
    clients = SignedClients(
        Runtime(grid),  # type: ignore[arg-type]
        RunKey(key, ticket.run, ticket.plan),
        sites,
        registered=lambda: _unchanged(sites, folder.sites()),
        ask_again_seconds=settings.strategy.ask_again_seconds,
        note_refused=RefusedAnswers(Path(settings.run_dir)),
        book=AnswerBook(Path(settings.run_dir)),
    )
    limits = {name: site.max_examples for name, site in sites.items()}
    return settings, clients, limits


def _take(path: Path) -> Draft:
    """Read and delete a ticket: from now on only this process has the run's key."""
    try:
        ticket = Draft.from_json(path.read_bytes())
        path.unlink()
    except OSError:
        raise RunFailed(
            "the ticket of this run was used: a ticket is valid for one start. To continue: "
            "wardround submit --resume RUN_DIR"
        ) from None
    return ticket


def _unchanged(
    sites: Mapping[str, RegisteredSite], now: Mapping[str, RegisteredSite]
) -> set[str]:
    """Return the sites of a run that are still registered with the keys they had when it was
    submitted."""
    unchanged = set()
    for name, site in sites.items():
        found = now.get(name)
        if found is None or found.public_key != site.public_key:
            continue
        if found.signing_key == site.signing_key:
            unchanged.add(name)
    return unchanged


class RefusedAnswers:
    """Counts the refused answers by site and reason in a file of the run folder."""

    def __init__(self, run_dir: Path) -> None:
        self._run = RunFolder(run_dir)
        self._counts = self._run.refused()

    def __call__(self, name: str, reason: str) -> None:
        counts = self._counts.setdefault(name, {})
        counts[reason] = counts.get(reason, 0) + 1
        self._run.write_refused(self._counts)
