"""The plan of a run: made once, signed with the coordinator's key, kept in the run folder for every start."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wardround.common.credentials import fingerprint, public_line
from wardround.common.errors import NotAuthentic, OtherVersion
from wardround.common.files import write_atomically
from wardround.common.settings.tree import Settings
from wardround.common.versions import PACKAGES
from wardround.common.wire.roster import names_with_one_key
from wardround.common.wire.signing import (
    PLAN,
    Plan,
    is_signed,
    open_plan,
    payload_digest,
    unsigned,
    with_signatures,
)
from wardround.server.deployment.folder import RegisteredSite

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE_NAME = "plan.json"
PLAN_DAYS = 60
"""How long a plan may be executed; afterwards its sites are asked to approve another."""
_DAY = 86_400.0


def roster_of(sites: Mapping[str, RegisteredSite]) -> dict[str, str]:
    """The roster of a plan with these sites: name, and fingerprint of the key that signs its answers.

    Raises:
        ValueError: two of them have one key, and would be counted twice.
    """
    roster = {
        name: fingerprint(site.signing_key) for name, site in sorted(sites.items())
    }
    if twins := names_with_one_key(roster):
        raise ValueError(
            f"the sites {' and '.join(twins)} have one key ({roster[twins[0]]}), and would be counted twice. "
            f"Take one of them out: wardround server unregister {twins[-1]}"
        )
    return roster


def plan_of(
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    run_dir: Path,
    key: Ed25519PrivateKey,
) -> str:
    """The signed plan of a run: that in its folder, if nothing has changed, so that approvals still hold.

    Args:
        sites: those that take part, by name.
        run_dir: where a new one is left.
        key: the coordinator's.

    Raises:
        ValueError: two sites have one key.
        OSError: it cannot be written.
    """
    plan = draft_plan(settings, sites, run_dir, public_line(key))
    if is_signed(plan):
        return plan
    plan = with_signatures(plan, key)
    keep_plan(run_dir, plan)
    return plan


def keep_plan(run_dir: Path, envelope: str) -> None:
    """Leave a signed plan in the run's folder. Raises OSError if it cannot be written."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(
        run_dir / FILE_NAME, lambda part: part.write_text(envelope, encoding="ascii")
    )


def draft_plan(
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    run_dir: Path,
    coordinator: str,
) -> str:
    """The signed plan in a run's folder, if nothing has changed; else a new one that nobody has signed yet.

    Args:
        sites: those that take part, by name.
        coordinator: the public key that plans are signed with, OpenSSH form.

    Raises:
        ValueError: two sites have one key.
    """
    path, now = run_dir / FILE_NAME, time.time()
    asked: dict[str, Any] = json.loads(settings.for_sites().to_json())
    roster = roster_of(sites)
    bounds = [site.max_examples for site in sites.values()]
    most_texts = 0 if None in bounds else max(filter(None, bounds), default=0)
    parent = ""
    if path.exists():
        envelope = path.read_text(encoding="ascii")
        try:
            before, parent = open_plan(envelope, coordinator)
            told = (before.settings, before.sites, before.most_texts)
            if told == (asked, roster, most_texts) and now + _DAY < before.not_after:
                return envelope
        except (
            NotAuthentic,
            OtherVersion,
        ):  # of a key before a rotation, or of a distant version
            parent = ""
    code = {name: version(name) for name in PACKAGES}
    plan = Plan(2, asked, roster, now, now + PLAN_DAYS * _DAY, code, parent, most_texts)
    return unsigned(PLAN, plan)


def plan_id(run_dir: Path) -> str:
    """SHA-256 of the plan in a run folder; empty where there is none."""
    path = run_dir / FILE_NAME
    return payload_digest(path.read_text(encoding="ascii")) if path.exists() else ""
