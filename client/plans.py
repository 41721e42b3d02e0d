"""The plans that a site has received, and the decisions about them.

Each plan has a folder in the site's state folder.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.client import approvals
from wardround.client.site_file import SiteFile
from wardround.common.errors import NotAuthentic, OtherVersion, SiteRefusal
from wardround.common.files import write_json, write_text
from wardround.common.settings.tree import Settings
from wardround.common.versions import NAME, advice, installed
from wardround.common.wire.signing import CLOCK_SECONDS, Plan, open_plan
from wardround.common.words import printable

SHORT = 12
"""Letters of a plan's SHA-256 that people use as its name."""
_MAX_UNDECIDED = 64
_PLAN = "plan.json"
_DECISION = "decision.json"


@dataclass(frozen=True)
class Decision:
    """The decision about a plan."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    state: Literal["pending", "approved", "rejected", "revoked"] = "pending"
    at: float = 0.0
    """Seconds since 1970."""
    by: Literal["", "hand", "policy"] = ""
    data: str = ""
    """SHA-256 of the site's data file at the time of approval."""
    why: str = ""
    """The reason of a rejection. It stays at the site."""
    people: dict[str, str] = field(default_factory=dict)
    """Fingerprint of the key of each person who signed the approval, by name."""


@dataclass(frozen=True)
class Known:
    """A plan that this site has received, with the decision about it."""

    digest: str
    plan: Plan
    settings: Settings
    decision: Decision

    @property
    def short(self) -> str:
        """The name that people use."""
        return self.digest[:SHORT]

    def is_over(self, now: float) -> bool:
        """Return True if the plan will never be executed again.

        Args:
            now: seconds since 1970.
        """
        is_refused = self.decision.state in ("rejected", "revoked")
        return is_refused or now > self.plan.not_after + CLOCK_SECONDS


class Plans:
    """The folder `plans` of a site's state.

    Decisions are read from the disk each time: people write them too.
    """

    def __init__(self, site: SiteFile, coordinator: str) -> None:
        """Open the folder.

        Args:
            coordinator: public key that plans are signed with, OpenSSH form.
        """
        self._folder = site.state / "plans"
        self._coordinator = coordinator

    def all(self) -> list[Known]:
        """Return the plans, oldest first.

        Plans of another key, as before a rotation, and of a distant version are left out.
        """
        folders = list(self._folder.glob("*"))
        folders.sort(key=lambda path: path.stat().st_mtime)
        plans = []
        for folder in folders:
            known = self.get(folder.name)
            if known is not None:
                plans.append(known)
        return plans

    def get(self, digest: str) -> Known | None:
        """Return the plan with this SHA-256; None if this site does not know it.

        Raises:
            ValueError: the file of its decision is damaged.
        """
        path = self._folder / digest / _PLAN
        if not path.is_file():
            return None
        try:
            envelope = path.read_text(encoding="ascii")
            plan, settings = _read(envelope, self._coordinator, digest)
        except (NotAuthentic, OtherVersion):
            return None
        decision = self._decision(digest)
        return Known(digest, plan, settings, decision)

    def find(self, name: str) -> Known:
        """Return the one plan whose SHA-256 begins with `name`.

        Raises:
            ValueError: there is no such plan, or there are several.
        """
        plans = self.all()
        start = name.lower()
        found = [known for known in plans if start and known.digest.startswith(start)]
        if len(found) != 1:
            problem = "no plan begins with it"
            if found:
                problem = "several plans begin with it"
            names = ", ".join(known.short for known in plans) or "no plans"
            raise ValueError(
                f"ID is '{name}'; {problem}. There are: {names}. See: wardround-site plans"
            )
        return found[0]

    def add(self, envelope: str) -> str:
        """Keep a plan that came with a greeting. Return its SHA-256.

        Raises:
            NotAuthentic: the coordinator has not signed it, or its settings are damaged.
            SiteRefusal: too many plans wait for a decision.
            OSError: the plan cannot be written.
        """
        try:
            plan, digest = open_plan(envelope, self._coordinator)
            _settings_of(plan)
        except OtherVersion as error:
            raise SiteRefusal("other_version", words=str(error)) from None
        path = self._folder / digest / _PLAN
        if not path.exists():
            states = [known.decision.state for known in self.all()]
            num_undecided = states.count("pending")
            if num_undecided >= _MAX_UNDECIDED:
                raise SiteRefusal("too_many_plans")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_text(path, envelope, "ascii")
        return digest

    def folder(self, digest: str) -> Path:
        """Return the folder of one plan."""
        return self._folder / digest

    def decide(self, digest: str, decision: Decision) -> None:
        """Write the decision about a plan. Raises OSError."""
        write_json(self.folder(digest) / _DECISION, asdict(decision))

    def object(
        self, known: Known, state: Literal["rejected", "revoked"], why: str
    ) -> None:
        """Stop a plan: one person is against it, and it is never executed again.

        Raises:
            ValueError: the approval to revoke does not exist.
            OSError: the decision cannot be written.
        """
        folder = self.folder(known.digest)
        has_approvals = (folder / approvals.FOLDER).exists()
        is_approved = has_approvals or known.decision.state == "approved"
        if state == "revoked" and not is_approved:
            raise ValueError(
                f"plan {known.short} is not approved. To refuse it: "
                f"wardround-site reject {known.short}"
            )
        decision = Decision(
            state=state,
            at=time.time(),
            by="hand",
            data=known.decision.data,
            why=why,
        )
        self.decide(known.digest, decision)
        approvals.forget(folder)

    def _decision(self, digest: str) -> Decision:
        path = self._folder / digest / _DECISION
        if not path.exists():
            return Decision()
        try:
            return TypeAdapter(Decision).validate_json(path.read_bytes())
        except ValidationError:
            raise ValueError(
                f"'{path}' is damaged. Move it away and decide again."
            ) from None


@lru_cache(maxsize=8)
def _read(envelope: str, coordinator: str, digest: str) -> tuple[Plan, Settings]:
    plan, found = open_plan(envelope, coordinator)
    if found != digest:
        raise NotAuthentic("forged")
    return plan, _settings_of(plan)


def _settings_of(plan: Plan) -> Settings:
    """Return a plan's settings.

    Raises:
        NotAuthentic: this version cannot have made them.
        OtherVersion: another version has made them.
    """
    try:
        return Settings.from_dict(plan.settings)
    except (ValueError, TypeError, KeyError, AttributeError):
        theirs = printable(plan.code.get(NAME, installed()))
        if theirs != installed():
            raise OtherVersion(advice(theirs)) from None
        raise NotAuthentic("damaged") from None
