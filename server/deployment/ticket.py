"""The ticket that `wardround submit` writes for the server app: settings, sites and the run's key.

It is a file in the server folder that only its owner can read. The server app deletes it after
reading it (`open_ticket.py`). Flower's run config, which every node can request, holds only the
ticket's name.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wardround.common.credentials import (
    new_key,
    private_text,
    public_line,
    write_secret,
)
from wardround.common.settings.tree import Settings
from wardround.common.wire.signing import (
    RUN,
    RunStatement,
    payload_digest,
    unsigned,
    with_signatures,
)
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
)
from wardround.server.deployment.plan import plan_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
        name=name,
        key=public_line(key),
        not_before=now,
        not_after=now + RUN_DAYS * 86_400,
        plan=payload_digest(plan),
    )
    return Draft(
        name=name,
        settings=settings,
        sites=dict(sites),
        key=private_text(key),
        run=unsigned(RUN, statement),
        plan=plan,
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
    path = ticket_path(folder.path, draft.name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_secret(path, draft.to_json())
    return draft.name


def ticket_path(folder: Path, name: str) -> Path:
    """Return the file of a ticket below the server folder."""
    return folder / "tickets" / f"{name}.json"
