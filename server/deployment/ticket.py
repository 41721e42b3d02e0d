"""What `wardround submit` leaves for the server app: settings, sites, and the key that signs the questions.

It lies in the server folder, readable for its owner only, and is taken away as soon as it was read. Flower's
run config, which every node may ask for, holds its name and nothing else.
"""

from __future__ import annotations

import json
import os
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
"""Environment variable in which the SuperLink tells its server apps where the server folder is."""
RUN_DAYS = 60
"""How long one submission may go on; then it is resumed by another."""


@dataclass(frozen=True)
class Draft:
    """All that the server app needs for one run. Who signs run and plan may be on another machine."""

    name: str
    """32 random hexadecimal digits."""
    settings: Settings
    sites: dict[str, RegisteredSite]
    """Those that take part, by name."""
    key: str
    """The run's private key, OpenSSH form: it signs the questions, and never leaves this machine."""
    run: str
    """Envelope of the `RunStatement`, signed by the coordinator before the ticket is left."""
    plan: str
    """Envelope of the `Plan`, signed likewise."""

    def to_json(self) -> bytes:
        """As it stands in a file."""
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
    """Make a key for one run; the statement that it is the run's is not signed yet.

    Args:
        plan: envelope of the run's plan, signed or not.
    """
    now = time.time() if now is None else now
    key, name = new_key("signing"), secrets.token_hex(16)
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
    """Make a key for one run, signed with the coordinator's, and leave all the server app needs.

    The run's plan is made too, if its folder holds none that still says the same.

    Returns:
        The ticket's name.

    Raises:
        ValueError: two sites have one key.
        OSError: plan or ticket cannot be written.
    """
    plan = plan_of(settings, sites, Path(settings.run_dir), signing_key)
    draft = draft_run(settings, sites, plan, now)
    return leave_ticket(
        folder, replace(draft, run=with_signatures(draft.run, signing_key))
    )


def leave_ticket(folder: ServerFolder, draft: Draft) -> str:
    """Leave a draft whose run and plan are signed for the server app. Returns its name; raises OSError."""
    path = _path(folder.path, draft.name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_secret(path, draft.to_json())
    return draft.name


def open_ticket(
    name: str, grid: Grid
) -> tuple[Settings, SignedClients, dict[str, int | None]]:
    """Settings, the sites as clients, and the most examples that each of them may claim.

    Raises:
        RunFailed: there is no such ticket here, or it was used.
    """
    if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
        raise RunFailed(
            "the run config names no ticket. Submit the run with: wardround submit"
        )
    folder = ServerFolder(Path(os.environ.get(FOLDER, "")))
    ticket = _take(_path(folder.path, name))
    settings, sites = ticket.settings, ticket.sites
    key: Any = load_ssh_private_key(ticket.key.encode("ascii"), None)
    clients = SignedClients(
        Runtime(grid),  # type: ignore[arg-type]
        RunKey(key, ticket.run, ticket.plan),
        sites,
        registered=lambda: _unchanged(sites, folder.sites()),
        ask_again_seconds=settings.strategy.ask_again_seconds,
        note=Refusals(Path(settings.run_dir)),
        book=AnswerBook(Path(settings.run_dir)),
    )
    return settings, clients, {name: site.max_examples for name, site in sites.items()}


def _take(path: Path) -> Draft:
    """Read a ticket and take it away: the run's key is in this process alone from now on."""
    try:
        ticket = Draft.from_json(path.read_bytes())
        path.unlink()
    except OSError:
        raise RunFailed(
            "the ticket of this run is not here any more: a ticket is good for one start. Go on with: "
            "wardround submit --resume RUN_DIR"
        ) from None
    return ticket


def _path(folder: Path, name: str) -> Path:
    return folder / "tickets" / f"{name}.json"


def _unchanged(
    sites: Mapping[str, RegisteredSite], now: Mapping[str, RegisteredSite]
) -> set[str]:
    """Names of a run's sites that are still registered, under the keys they had when it was submitted."""
    keys = {name: (site.public_key, site.signing_key) for name, site in now.items()}
    return {
        name
        for name, site in sites.items()
        if keys.get(name) == (site.public_key, site.signing_key)
    }


class Refusals:
    """Counts answers that did not count, by site and reason, in a file of the run folder."""

    def __init__(self, run_dir: Path) -> None:
        self._run = RunFolder(run_dir)
        self._counts = self._run.refused()

    def __call__(self, name: str, reason: str) -> None:
        counts = self._counts.setdefault(name, {})
        counts[reason] = counts.get(reason, 0) + 1
        self._run.write_refused(self._counts)
