"""The commands about plans: list, explain, approve, reject, revoke.

Each function returns the text for the person who typed the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from wardround.client.decisions import Person, approve, limits_of
from wardround.client.kit.words.comparison import plan_to_compare
from wardround.client.kit.words.plan import describe, describe_all, list_of_plans
from wardround.client.plans import Known, Plans
from wardround.client.policy.limits import Limits
from wardround.client.site_file import SiteFile, load_site_file, signing_keys
from wardround.common.credentials import read_private_key
from wardround.common.errors import SiteRefusal
from wardround.common.words import printable

_NEW_PERSONAL_KEY = 'Make one with: ssh-keygen -t ed25519 -N "" -f FILE'


def list_plans(site_file: Path) -> str:
    """Return all plans, one a line."""
    plans, _ = _open(site_file)
    return list_of_plans(plans.all())


def explain_plan(site_file: Path, plan: str, *, everything: bool) -> str:
    """Explain a plan in plain words.

    Args:
        plan: the beginning of its SHA-256.
        everything: add every setting.
    """
    # It loads PyTorch, which the other commands do not need.
    from wardround.client.kit.costs import measure_here

    plans, site = _open(site_file)
    limits = _limits(site)
    known = plans.find(plan)
    before = plan_to_compare(known, plans.all())
    here = measure_here(site, known, limits)
    lines = list(describe(known, before, limits, here))
    if everything:
        lines += describe_all(known, before, limits, here)
    return "\n".join(lines)


def approve_plan(site_file: Path, plan: str, name: str | None, key: Path | None) -> str:
    """Approve a plan, unless `explain_plan` shows a refusal.

    Args:
        plan: the beginning of its SHA-256.
        name: the person who approves; None if approvals are not signed.
        key: file of that person's private key.

    Raises:
        ValueError: no such plan, person or key; or the policy refuses the plan.
    """
    plans, site = _open(site_file)
    known = plans.find(plan)
    limits = _limits(site)
    person = _person(name, key)
    try:
        _check_here(site, known, limits)
        is_approved = approve(plans, known, site, limits, "hand", person)
    except SiteRefusal as error:
        raise ValueError(
            f"plan {known.short} cannot be approved ({error.code}): "
            f"{printable(str(error))}. Reject it, or change the policy in '{site_file}', "
            "which takes effect at once."
        ) from None
    if is_approved:
        return (
            f"Approved: {known.short}. It runs on your file as it is today, until "
            "somebody revokes it."
        )
    return f"Noted: {name} approves {known.short}. Another person must approve it too."


def _check_here(site: SiteFile, known: Known, limits: Limits) -> None:
    """Raise SiteRefusal if this site's texts, files or budget do not fit the plan."""
    # It loads PyTorch, which the other commands do not need.
    from wardround.client.kit.costs import measure_here

    for code, key, words in measure_here(site, known, limits).refusals:
        raise SiteRefusal(code, key, words)


def object_to_plan(
    site_file: Path, plan: str, state: Literal["rejected", "revoked"], why: str
) -> str:
    """Reject a plan, or revoke its approval. Args: why: stays at this site."""
    plans, _ = _open(site_file)
    known = plans.find(plan)
    plans.object(known, state, why)
    return f"Plan {known.short} is {state}. Takes effect at the next request."


def _open(site_file: Path) -> tuple[Plans, SiteFile]:
    site = load_site_file(site_file)
    _, coordinator = signing_keys(site)
    return Plans(site, coordinator), site


def _limits(site: SiteFile) -> Limits:
    own, _ = signing_keys(site)
    return limits_of(site, own)


def _person(name: str | None, key: Path | None) -> Person | None:
    """Return the person who approves; None if neither name nor key is given."""
    if name is None and key is None:
        return None
    if name is None or key is None:
        raise ValueError("--as and --key belong together: --as NAME --key FILE")
    private = read_private_key(key, "signing", "--key", _NEW_PERSONAL_KEY)
    return Person(name, private)  # type: ignore[arg-type]
