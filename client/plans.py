"""The plans a site was told of, and what its people decided: a folder for each, in the state folder."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.client import approvals
from wardround.client.answers import Answers
from wardround.client.approvals import Approvers
from wardround.client.peers import Peers
from wardround.client.policy.limits import Limits
from wardround.client.policy.verdict import refusals_of
from wardround.client.sizes import Sizes, size_refusals
from wardround.client.versions import Versions
from wardround.common.credentials import fingerprint, public_line
from wardround.common.data.dataset import read_texts
from wardround.common.errors import NotAuthentic, OtherVersion, SiteRefusal
from wardround.common.files import file_sha256, write_atomically, write_json
from wardround.common.settings.tree import Settings
from wardround.common.versions import NAME, advice, installed
from wardround.common.wire.refusals import PENDING
from wardround.common.wire.signing import CLOCK_SECONDS, Plan, open_plan
from wardround.common.words import printable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from wardround.client.site_file import SiteFile

SHORT = 12
"""Letters of a plan's SHA-256 that people call it by."""
_MOST_UNDECIDED = 64
_PLAN, _DECISION = "plan.json", "decision.json"


@dataclass(frozen=True)
class Decision:
    """What was decided about a plan."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    state: Literal["pending", "approved", "rejected", "revoked"] = "pending"
    at: float = 0.0
    """Seconds since 1970."""
    by: Literal["", "hand", "policy"] = ""
    data: str = ""
    """SHA-256 of the site's data file when it was approved."""
    why: str = ""
    """Of a rejection. It stays at the site."""
    people: dict[str, str] = field(default_factory=dict)
    """Of an approval by people with keys of their own: fingerprint of each key, by name."""


@dataclass(frozen=True)
class Known:
    """A plan, its number, and where it stands."""

    digest: str
    plan: Plan
    settings: Settings
    decision: Decision

    @property
    def short(self) -> str:
        """What people call it by."""
        return self.digest[:SHORT]

    def is_over(self, now: float) -> bool:
        """Whether nothing of it will be executed any more. Args: now: seconds since 1970."""
        is_refused = self.decision.state in ("rejected", "revoked")
        return is_refused or now > self.plan.not_after + CLOCK_SECONDS


class Plans:
    """The folder `plans` of a site's state. Decisions are read anew each time: people write them too."""

    def __init__(self, site: SiteFile, coordinator: str) -> None:
        """Args: coordinator: the public key that plans are signed with, OpenSSH form."""
        self._folder, self._coordinator = site.state / "plans", coordinator

    def all(self) -> list[Known]:
        """Oldest first. Those of another key, as before a rotation, or of a distant version are left out."""
        folders = sorted(self._folder.glob("*"), key=lambda path: path.stat().st_mtime)
        return [
            known for folder in folders if (known := self.get(folder.name)) is not None
        ]

    def get(self, digest: str) -> Known | None:
        """The plan of this SHA-256; None where it is not known. Raises ValueError for a damaged file."""
        path = self._folder / digest / _PLAN
        if not path.is_file():
            return None
        try:
            plan, settings = _read(
                path.read_text(encoding="ascii"), self._coordinator, digest
            )
        except (NotAuthentic, OtherVersion):
            return None
        return Known(digest, plan, settings, self._decision(digest))

    def find(self, name: str) -> Known:
        """The one plan whose SHA-256 begins like this. Raises ValueError where there is none, or several."""
        found = [
            known
            for known in self.all()
            if name and known.digest.startswith(name.lower())
        ]
        if len(found) != 1:
            names = ", ".join(known.short for known in self.all()) or "none"
            raise ValueError(
                f"ID is '{name}', which {'several plans begin with' if found else 'no plan has'}. There are: "
                f"{names}. See: wardround-site plans"
            )
        return found[0]

    def add(self, envelope: str) -> str:
        """Keep a plan that came along with a greeting; returns its SHA-256.

        Raises:
            NotAuthentic: the coordinator has not signed it, or its settings cannot be.
            SiteRefusal: too many wait for a decision.
            OSError: it cannot be written.
        """
        try:
            plan, digest = open_plan(envelope, self._coordinator)
            _settings_of(plan)
        except OtherVersion as error:
            raise SiteRefusal("other_version", words=str(error)) from None
        path = self._folder / digest / _PLAN
        if not path.exists():
            if (
                sum(known.decision.state == "pending" for known in self.all())
                >= _MOST_UNDECIDED
            ):
                raise SiteRefusal("too_many_plans")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(
                path, lambda part: part.write_text(envelope, encoding="ascii")
            )
        return digest

    def folder(self, digest: str) -> Path:
        """Of one plan."""
        return self._folder / digest

    def decide(self, digest: str, decision: Decision) -> None:
        """Write down what was decided. Raises OSError."""
        write_json(self.folder(digest) / _DECISION, asdict(decision))

    def object(
        self, known: Known, state: Literal["rejected", "revoked"], why: str
    ) -> None:
        """One person is against a plan: nothing of it is executed any more, whoever approved it.

        Raises:
            ValueError: an approval is to be taken back, and there is no approval.
            OSError: this cannot be written.
        """
        folder = self.folder(known.digest)
        is_approved = (
            known.decision.state == "approved" or (folder / approvals.FOLDER).exists()
        )
        if state == "revoked" and not is_approved:
            raise ValueError(
                f"plan {known.short} is not approved. To refuse it: wardround-site reject {known.short}"
            )
        self.decide(
            known.digest, Decision(state, time.time(), "hand", known.decision.data, why)
        )
        approvals.forget(folder)

    def _decision(self, digest: str) -> Decision:
        path = self._folder / digest / _DECISION
        if not path.exists():
            return Decision()
        try:
            return TypeAdapter(Decision).validate_json(path.read_bytes())
        except ValidationError:
            raise ValueError(
                f"'{path}' is not what this program wrote. Take it away and decide anew."
            ) from None


@dataclass(frozen=True)
class Person:
    """Who approves, if people sign what they approve."""

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
    """Let a plan be executed, with the texts as they are now. Returns whether no other person is needed.

    Raises:
        SiteRefusal: the policy refuses it, the texts cannot be read, or they are too few for it, or too close to
            texts that this site has answered for.
        ValueError: people must sign here, and nobody did, or this person is no approver.
        OSError: this cannot be written.
    """
    _check_person(person, site)
    for code, key, words in refusals_of(known.plan, known.settings, limits):
        raise SiteRefusal(code, key, words)
    versions = Versions(site)
    try:
        data = file_sha256(site.data_path)
        version = versions.read()
        sizes = sizes_of(site, known.settings)
    except OSError as error:
        raise SiteRefusal(
            "bad_input", words=f"{error.filename}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise SiteRefusal("bad_input", words=str(error)) from None
    for code, key, words in size_refusals(known.settings, sizes, site.policy):
        raise SiteRefusal(code, key, words)
    versions.check_distance(version, Answers(site.state).answered())
    people = _sign_approval(plans, known, site, data, person)
    if (
        by == "hand"
        and site.policy.approvals > 1
        and len(people) < site.policy.approvals
    ):
        return False
    versions.keep(known.digest, data, version)
    plans.decide(
        known.digest, Decision("approved", time.time(), by, data, people=people)
    )
    return True


def _check_person(person: Person | None, site: SiteFile) -> None:
    if person is not None:
        Approvers(site.state).name_of(person.name, person.key)
    elif site.policy.approvals > 1 and site.policy.approve == "by_hand":
        raise ValueError(
            f"policy.approvals is {site.policy.approvals}: each person signs. Say who approves: "
            "--as NAME --key FILE"
        )


def _sign_approval(
    plans: Plans, known: Known, site: SiteFile, data: str, person: Person | None
) -> dict[str, str]:
    """Keep a person's approval; returns the key of each person whose approval counts now, by name."""
    if person is None:
        return {}
    folder = plans.folder(known.digest)
    approvals.put(folder, site.name, known.digest, data, person.name, person.key)
    return people_for(plans, known, site, data)


def people_for(plans: Plans, known: Known, site: SiteFile, data: str) -> dict[str, str]:
    """Fingerprint of the key of each person who approved a plan on these texts, by name. Raises OSError."""
    keys = Approvers(site.state).keys()
    return approvals.who_approved(
        plans.folder(known.digest), site.name, known.digest, data, keys
    )


def sizes_of(site: SiteFile, settings: Settings) -> Sizes:
    """How many texts this site would train on and hold out. Raises ValueError or OSError for its file."""
    data = read_texts(site.data_settings(settings.data), settings.seed, site.name)
    return Sizes(len(data.train), len(data.test))


def executed(
    plans: Plans, digest: str, site: SiteFile, limits: Limits, now: float | None = None
) -> Known:
    """The plan, if it is to be executed now; if the policy says so, it is approved on this occasion.

    Raises:
        SiteRefusal: says why not.
        OSError: a decision cannot be written.
    """
    now = time.time() if now is None else now
    known = plans.get(digest)
    if known is None:
        raise SiteRefusal("plan_unknown")
    if known.decision.state in ("rejected", "revoked"):
        raise SiteRefusal(f"plan_{known.decision.state}")
    for code, key, words in refusals_of(known.plan, known.settings, limits):
        raise SiteRefusal(code, key, words)
    if (
        not known.plan.not_before - CLOCK_SECONDS
        <= now
        <= known.plan.not_after + CLOCK_SECONDS
    ):
        raise SiteRefusal("plan_over")
    if known.decision.state == "pending":
        if limits.policy.approve == "by_hand":
            raise SiteRefusal(
                PENDING,
                words=f"plan {known.short} waits for: wardround-site approve {known.short}",
            )
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
    """A site's policy with the facts its rules need. Args: key: the private key that signs its answers."""
    labels: tuple[str, ...] = ()
    if site.invitation is not None and site.invitation.exists():
        from wardround.common.wire.invitation import Invitation, read_document

        labels = read_document(Invitation, site.invitation)[0].labels
    own, peers = fingerprint(public_line(key)), Peers.open(site.state)
    return Limits(site.policy, site.name, own, site.model is not None, labels, peers)


@lru_cache(maxsize=8)
def _read(envelope: str, coordinator: str, digest: str) -> tuple[Plan, Settings]:
    plan, found = open_plan(envelope, coordinator)
    if found != digest:
        raise NotAuthentic("forged")
    return plan, _settings_of(plan)


def _settings_of(plan: Plan) -> Settings:
    """Raises NotAuthentic if this version cannot have made them, OtherVersion if another one has."""
    try:
        return Settings.from_json(json.dumps(plan.settings))
    except (ValueError, TypeError, KeyError, AttributeError):
        theirs = printable(plan.code.get(NAME, installed()))
        if theirs != installed():
            raise OtherVersion(advice(theirs)) from None
        raise NotAuthentic("damaged") from None
