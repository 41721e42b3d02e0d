"""The plan of a run: made once, signed with the coordinator's key, kept in the run folder for every start."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.credentials import fingerprint, public_line
from common.files import write_atomically
from common.settings import Settings
from common.wire.signing import PLAN, NotAuthentic, Plan, open_plan, payload_digest, sign
from server.deployment.folder import RegisteredSite

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE_NAME = "plan.json"
PLAN_DAYS = 60
"""How long a plan may be executed; afterwards its sites are asked to approve another."""
_DAY = 86_400.0
_AT_SITES = ("wardround", "flwr", "torch", "transformers")


def plan_of(
    settings: Settings, sites: Mapping[str, RegisteredSite], run_dir: Path, key: Ed25519PrivateKey
) -> str:
    """The signed plan of a run: that in its folder, if nothing has changed, so that approvals still hold.

    Args:
        sites: those that take part, by name.
        run_dir: where a new one is left.
        key: the coordinator's.

    Raises:
        OSError: it cannot be written.
    """
    path, now = run_dir / FILE_NAME, time.time()
    asked: dict[str, Any] = json.loads(settings.for_sites().to_json())
    roster = {name: fingerprint(site.signing_key) for name, site in sorted(sites.items())}
    bounds = [site.max_examples for site in sites.values()]
    most_texts = 0 if None in bounds else max(filter(None, bounds), default=0)
    parent = ""
    if path.exists():
        envelope = path.read_text(encoding="ascii")
        try:
            before, parent = open_plan(envelope, public_line(key))
            told = (before.settings, before.sites, before.most_texts)
            if told == (asked, roster, most_texts) and now + _DAY < before.not_after:
                return envelope
        except NotAuthentic:  # of a key before a rotation
            parent = ""
    code = {name: version(name) for name in _AT_SITES}
    plan = Plan(2, asked, roster, now, now + PLAN_DAYS * _DAY, code, parent, most_texts)
    envelope = sign(PLAN, plan, key)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(envelope, encoding="ascii"))
    return envelope


def plan_id(run_dir: Path) -> str:
    """SHA-256 of the plan in a run folder; empty where there is none."""
    path = run_dir / FILE_NAME
    return payload_digest(path.read_text(encoding="ascii")) if path.exists() else ""
