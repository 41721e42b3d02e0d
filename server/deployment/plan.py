"""The plan of a run: made once, signed with the coordinator's key, kept in the run folder for
every start."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround.common.credentials import fingerprint, public_line
from wardround.common.errors import NotAuthentic, OtherVersion
from wardround.common.files import write_text
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

FILE_NAME = "plan.json"
PLAN_DAYS = 60
"""Days for which a plan is valid; afterwards its sites are asked to approve another."""
_DAY = 86_400.0


def roster_of(sites: Mapping[str, RegisteredSite]) -> dict[str, str]:
    """Return the roster of a plan: each site's name with the fingerprint of its signing key.

    Raises:
        ValueError: two sites have the same key and would be counted twice.
    """
    roster = {
        name: fingerprint(site.signing_key) for name, site in sorted(sites.items())
    }
    if twins := names_with_one_key(roster):
        raise ValueError(
            f"the sites {' and '.join(twins)} have the same key ({roster[twins[0]]}) and would be "
            f"counted "
            f"twice. Remove one of them: wardround server unregister {twins[-1]}"
        )
    return roster


def plan_of(
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    run_dir: Path,
    key: Ed25519PrivateKey,
) -> str:
    """Return the signed plan of a run. If nothing has changed, it is the one in its folder.

    So approvals of an unchanged plan stay valid.

    Args:
        sites: the sites that take part, by name.
        run_dir: folder for a new plan.
        key: the coordinator's signing key.

    Raises:
        ValueError: two sites have the same key.
        OSError: the plan cannot be written.
    """
    plan = draft_plan(settings, sites, run_dir, public_line(key))
    if is_signed(plan):
        return plan
    plan = with_signatures(plan, key)
    keep_plan(run_dir, plan)
    return plan


def keep_plan(run_dir: Path, envelope: str) -> None:
    """Write a signed plan to the run's folder. Raises OSError if that fails."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / FILE_NAME, envelope)


def draft_plan(
    settings: Settings,
    sites: Mapping[str, RegisteredSite],
    run_dir: Path,
    coordinator: str,
) -> str:
    """Return the signed plan in a run's folder, if nothing has changed; else a new, unsigned one.

    Args:
        sites: the sites that take part, by name.
        coordinator: the public key of the coordinator, OpenSSH form.

    Raises:
        ValueError: two sites have the same key.
    """
    path = run_dir / FILE_NAME
    now = time.time()
    site_settings: dict[str, Any] = json.loads(settings.for_sites().to_json())
    roster = roster_of(sites)
    bounds = [site.max_examples for site in sites.values()]
    most_texts = 0 if None in bounds else max(filter(None, bounds), default=0)
    content = (site_settings, roster, most_texts)
    parent = ""
    if path.exists():
        envelope = path.read_text(encoding="ascii")
        try:
            before, parent = open_plan(envelope, coordinator)
            is_same = content == (before.settings, before.sites, before.most_texts)
            if is_same and now + _DAY < before.not_after:
                return envelope
        except (NotAuthentic, OtherVersion):
            # Signed with a key before a rotation, or written by a distant version.
            parent = ""
    code = {name: version(name) for name in PACKAGES}
    plan = Plan(
        2, site_settings, roster, now, now + PLAN_DAYS * _DAY, code, parent, most_texts
    )
    return unsigned(PLAN, plan)


def plan_id(run_dir: Path) -> str:
    """Return the SHA-256 of the plan in a run folder; empty if there is no plan."""
    path = run_dir / FILE_NAME
    if not path.exists():
        return ""
    return payload_digest(path.read_text(encoding="ascii"))
