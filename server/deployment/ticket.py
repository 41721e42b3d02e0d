"""The ticket that `wardround submit` writes for the server app: settings, sites and the run's key.

It is a file in the server folder that only its owner can read. The server app deletes it after
reading it. Flower's run config, which every node can request, holds only the ticket's name.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.serverapp import Grid

from wardround.common.credentials import (
    new_key,
    private_text,
    public_line,
    write_secret,
)
from wardround.common.errors import RunFailed
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import (
    RUN,
    RunStatement,
    payload_digest,
    unsigned,
    with_signatures,
)
from wardround.server.deployment.audit import AnswerBook
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
)
from wardround.server.deployment.plan import plan_of
from wardround.server.deployment.runtime_link import Runtime
from wardround.server.deployment.signed_clients import RunKey, SignedClients
from wardround.server.run_folder import RunFolder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FOLDER = "WARDROUND_SERVER_DIR"
"""Environment variable with the server folder, which the SuperLink sets for its server apps."""
_NAME = re.compile("[0-9a-f]{32}")
RUN_DAYS = 60
"""Days for which one submission is valid; a longer run has to be resumed."""


@dataclass(frozen=True)
class Draft:
    """The data of one run for the server app. Its run and plan may be signed on another machine."""

    name: str
    """32 random hexadecimal digits."""
    settings: Settings
    sites: dict[str, RegisteredSite]
    """The sites that take part, by name."""
    key: str
    """The run's private key, OpenSSH form. It signs the questions and never leaves this machine."""
    run: str
    """Envelope of the `RunStatement`; the coordinator signs it before the ticket is written."""
    plan: str
    """Envelope of the `Plan`, signed in the same way."""

    def to_json(self) -> bytes:
        """Return the content of a ticket file."""
        settings = self.settings.to_dict()
        sites = {name: asdict(site) for name, site in self.sites.items()}
        return json.dumps(vars(self) | {"settings": settings, "sites": sites}).encode()

    @classmethod
    def from_json(cls, written: bytes) -> Draft:
        """Inverse of `to_json`."""
        content = json.loads(written)
        settings = Settings.from_dict(content["settings"])
        sites = {
            name: RegisteredSite(**site) for name, site in content["sites"].items()
        }
        return cls(**content | {"settings": settings, "sites": sites})


def draft_run(
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    plan: str,
    now: float | None = None,
) -> Draft:
    """Make a key for one run. The statement that confirms the key is not signed yet.

    Args:
        plan: envelope of the run's plan, signed or not.
    """
    if now is None:
        now = time.time()
    key = new_key("signing")
    name = secrets.token_hex(16)
    statement = RunStatement(
        name, public_line(key), now, now + RUN_DAYS * 86_400, payload_digest(plan)
    )
    return Draft(
        name, settings, dict(sites), private_text(key), unsigned(RUN, statement), plan
    )


def write_ticket(
    folder: ServerFolder,
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    signing_key: Ed25519PrivateKey,
    now: float | None = None,
) -> str:
    """Make and sign a key for one run, and write the ticket.

    If the run's folder holds no plan with the same content, a new plan is made and signed.

    Returns:
        The ticket's name.

    Raises:
        ValueError: two sites have one key.
        OSError: plan or ticket cannot be written.
    """
    plan = plan_of(settings, sites, Path(settings.run_dir), signing_key)
    draft = draft_run(settings, sites, plan, now)
    signed = replace(draft, run=with_signatures(draft.run, signing_key))
    return leave_ticket(folder, signed)


def leave_ticket(folder: ServerFolder, draft: Draft) -> str:
    """Write a ticket from a draft with signed run and plan; return its name. Raises OSError."""
    path = _path(folder.path, draft.name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_secret(path, draft.to_json())
    return draft.name


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
    ticket = _take(_path(folder.path, name))
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


def _path(folder: Path, name: str) -> Path:
    return folder / "tickets" / f"{name}.json"


def _unchanged(
    sites: Mapping[str, RegisteredSite], now: Mapping[str, RegisteredSite]
) -> set[str]:
    """Return the sites of a run that are still registered with the keys they had when it was
    submitted."""
    keys = {name: (site.public_key, site.signing_key) for name, site in now.items()}
    return {
        name
        for name, site in sites.items()
        if keys.get(name) == (site.public_key, site.signing_key)
    }


class RefusedAnswers:
    """Counts the refused answers by site and reason in a file of the run folder."""

    def __init__(self, run_dir: Path) -> None:
        self._run = RunFolder(run_dir)
        self._counts = self._run.refused()

    def __call__(self, name: str, reason: str) -> None:
        counts = self._counts.setdefault(name, {})
        counts[reason] = counts.get(reason, 0) + 1
        self._run.write_refused(self._counts)
