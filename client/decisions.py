"""Decisions about plans: approve one, and check that one may be executed now."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wardround.client import approvals
from wardround.client.answers import Answers
from wardround.client.approvals import Approvers
from wardround.client.peers import Peers
from wardround.client.plans import Decision, Known, Plans
from wardround.client.policy.limits import Limits, refuse_first
from wardround.client.policy.verdict import refusals_of
from wardround.client.sizes import Sizes, size_refusals
from wardround.client.versions import Versions
from wardround.common.credentials import fingerprint, public_line
from wardround.common.data.dataset import read_texts
from wardround.common.errors import SiteRefusal
from wardround.common.files import file_sha256
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of
from wardround.common.wire.invitation import Invitation, read_document
from wardround.common.wire.refusals import PENDING
from wardround.common.wire.signing import CLOCK_SECONDS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from wardround.client.site_file import SiteFile


@dataclass(frozen=True)
class Person:
    """A person who signs an approval."""

    name: str
    key: Ed25519PrivateKey


def approve(
    plans: Plans,
    known: Known,
    site: SiteFile,
    limits: Limits,
    by: Literal["hand", "policy"],
    person: Person | None = None,
) -> bool:
    """Approve a plan, with the texts as they are now.

    Returns:
        True if the plan may be executed; False if another person must approve it too.

    Raises:
        SiteRefusal: the policy refuses the plan; or the texts cannot be read, are too few,
            or are too close to texts that this site has answered for.
        ValueError: a person must sign here and did not, or is not an approver.
        OSError: the approval cannot be written.
    """
    _check_person(person, site)
    refuse_first(refusals_of(known.plan, known.settings, limits))
    versions = Versions(site)
    try:
        data = file_sha256(site.data_path)
        version = versions.read()
        sizes = sizes_of(site, known.settings)
    except OSError as error:
        words = f"{error.filename}: {error.strerror}"
        raise SiteRefusal("bad_input", words=words) from None
    except ValueError as error:
        raise SiteRefusal("bad_input", words=str(error)) from None
    refuse_first(size_refusals(known.settings, sizes, site.policy))
    versions.check_distance(version, Answers(site.state).answered())
    people = _sign_approval(plans, known, site, data, person)
    needed = site.policy.approvals
    if by == "hand" and needed > 1 and len(people) < needed:
        return False
    versions.keep(known.digest, data, version)
    decision = Decision("approved", time.time(), by, data, people=people)
    plans.decide(known.digest, decision)
    return True


def _check_person(person: Person | None, site: SiteFile) -> None:
    if person is not None:
        Approvers(site.state).name_of(person.name, person.key)
    elif site.policy.approvals > 1 and site.policy.approve == "by_hand":
        raise ValueError(
            f"policy.approvals is {site.policy.approvals}: each person signs. "
            "Add: --as NAME --key FILE"
        )


def _sign_approval(
    plans: Plans, known: Known, site: SiteFile, data: str, person: Person | None
) -> dict[str, str]:
    """Keep a person's approval. Return the approvals that count now, as `people_for`."""
    if person is None:
        return {}
    folder = plans.folder(known.digest)
    approvals.put(folder, site.name, known.digest, data, person.name, person.key)
    return people_for(plans, known, site, data)


def people_for(plans: Plans, known: Known, site: SiteFile, data: str) -> dict[str, str]:
    """Return the people who approved a plan on these texts: each key's fingerprint, by name.

    Raises:
        OSError: a file cannot be read.
    """
    keys = Approvers(site.state).keys()
    return approvals.who_approved(
        plans.folder(known.digest), site.name, known.digest, data, keys
    )


def sizes_of(site: SiteFile, settings: Settings) -> Sizes:
    """Count the texts that this site would train on and hold out.

    Raises:
        ValueError or OSError: the data file cannot be read.
    """
    own = site.data_settings(settings.data)
    data = read_texts(task_of(settings), own, settings.seed, site.name)
    return Sizes(len(data.train), len(data.test))


def executed(
    plans: Plans, digest: str, site: SiteFile, limits: Limits, now: float | None = None
) -> Known:
    """Return the plan if it may be executed now.

    A plan that waits is approved first, if the policy allows that.

    Raises:
        SiteRefusal: it may not be executed.
        OSError: a decision cannot be written.
    """
    if now is None:
        now = time.time()
    known = plans.get(digest)
    if known is None:
        raise SiteRefusal("plan_unknown")
    if known.decision.state in ("rejected", "revoked"):
        raise SiteRefusal(f"plan_{known.decision.state}")
    refuse_first(refusals_of(known.plan, known.settings, limits))
    first = known.plan.not_before - CLOCK_SECONDS
    last = known.plan.not_after + CLOCK_SECONDS
    if not first <= now <= last:
        raise SiteRefusal("plan_over")
    if known.decision.state == "pending":
        if limits.policy.approve == "by_hand":
            words = (
                f"plan {known.short} waits for your decision: "
                f"wardround-site plan {known.short}"
            )
            raise SiteRefusal(PENDING, words=words)
        approve(plans, known, site, limits, "policy")
        return executed(plans, digest, site, limits, now)
    _check_people(plans, known, site)
    return known


def _check_people(plans: Plans, known: Known, site: SiteFile) -> None:
    """Raise SiteRefusal if the policy asks for more people than have approved."""
    needed = site.policy.approvals
    if needed == 1:
        return
    people = people_for(plans, known, site, known.decision.data)
    if len(people) < needed:
        words = (
            f"plan {known.short} has the approval of {len(people)} of {needed} people"
        )
        raise SiteRefusal(PENDING, words=words)


def limits_of(site: SiteFile, key: Any) -> Limits:
    """Return a site's policy with the facts that its rules need.

    Args:
        key: private key that signs the site's answers.
    """
    labels: tuple[str, ...] = ()
    if site.invitation is not None and site.invitation.exists():
        labels = read_document(Invitation, site.invitation)[0].labels
    return Limits(
        policy=site.policy,
        site=site.name,
        key=fingerprint(public_line(key)),
        has_own_model=site.model is not None,
        labels=labels,
        peers=Peers.open(site.state),
    )
