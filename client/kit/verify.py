"""`wardround-site verify-model`: whether a model folder is what an approved plan of this site made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

from wardround.client.kit.plans import STATES
from wardround.client.plans import SHORT, Known, Plans
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import fingerprint, public_line
from wardround.common.ledger import FILE_NAME as LEDGER
from wardround.common.ledger import read_ledger
from wardround.common.provenance import Claim, Unproven
from wardround.common.wire.messages import TRAIN
from wardround.common.words import cleaned


@dataclass(frozen=True)
class Check:
    """What came of one check."""

    name: str
    """Row of the table `CHECKS`."""
    state: Literal["ok", "no", "--"]
    """`--`: not looked at, for what it needs is not proved."""
    words: str

    def in_words(self) -> str:
        """One line for a person; it may repeat names that somebody else gave."""
        return cleaned(f"{self.state:<4}{self.name:<11}{self.words}")


@dataclass(frozen=True)
class _Subject:
    """A folder, and the site that looks at it."""

    site: SiteFile
    claim: Claim
    own: str
    """Fingerprint of the key that signs this site's answers."""

    @cached_property
    def known(self) -> Known:
        """The plan, as this site keeps it. Raises Unproven where it was not told of it."""
        assert self.claim.coordinator is not None, "a site trusts a key"
        digest = self.claim.provenance.plan
        known = Plans(self.site, self.claim.coordinator).get(digest)
        if known is None:
            short = digest[:SHORT]
            raise Unproven(
                f"this site was not told of plan {short}, or an older key signed it"
            )
        return known


def _run(on: _Subject) -> str:
    return on.claim.check_run()


def _statement(on: _Subject) -> str:
    return on.claim.check_statement()


def _plan(on: _Subject) -> str:
    """The plan was approved here, and still is."""
    known = on.known
    if known.decision.state != "approved":
        raise Unproven(
            f"plan {known.short} at this site: {STATES[known.decision.state]}"
        )
    day = datetime.fromtimestamp(known.decision.at, UTC).strftime("%Y-%m-%d")
    return f"plan {known.short} was approved here on {day}, by {known.decision.by or 'hand'}"


def _sites(on: _Subject) -> str:
    """Who took part is who stands in the plan, this site among them."""
    roster = on.known.plan.sites
    if on.claim.provenance.sites != roster:
        raise Unproven("the sites, or their keys, are others than in the plan")
    if roster.get(on.site.name) != on.own:
        raise Unproven(f"{on.site.name} does not stand in the plan under its own key")
    return f"{', '.join(sorted(roster))}, as in the plan"


def _updates(on: _Subject) -> str:
    """Each update of this site that is named left this site, as its ledger says."""
    found, known = on.claim.provenance, on.known
    most = known.settings.num_rounds
    last = min(found.round or most, most)  # version 1 does not tell the round
    places = [(number, name) for number, name, _ in found.updates]
    strange = [
        f"round {number} of {name}"
        for number, name in places
        if name not in known.plan.sites or not 0 < number <= last
    ]
    if strange:
        raise Unproven(
            f"updates are named that the plan does not have ({', '.join(strange)})"
        )
    if len(set(places)) < len(places):
        raise Unproven("an update is named twice")
    own = {
        (number, answer)
        for number, name, answer in found.updates
        if name == on.site.name
    }
    left = _left(on.site, found.plan)
    unknown = sorted(number for number, answer in own if (number, answer) not in left)
    if unknown:
        raise Unproven(
            f"this site's update of round {unknown[0]} is not one that its ledger says left. See: "
            "wardround-site ledger show"
        )
    if not left:
        raise Unproven(
            "no update left this site for this plan: it was not executed here"
        )
    told = f"of {len(left)} that its ledger says left for this plan"
    return f"{len(own)} of this site are in it, {told}"


def _left(site: SiteFile, plan: str) -> set[tuple[int, str]]:
    """Round and hash of the signed answer of every update that the ledger says left for a plan."""
    try:
        entries = read_ledger(site.state / LEDGER).values()
    except ValueError as error:
        raise Unproven(f"the ledger cannot be read: {error}") from None
    wanted = ("leaves", TRAIN, plan, "left")
    return {
        (before.round, entry.statement)
        for before, entry in pairwise(entries)
        if (before.what, before.kind, before.plan, entry.what) == wanted
    }


def _files(on: _Subject) -> str:
    return on.claim.check_files()


def _tensors(on: _Subject) -> str:
    return on.claim.check_tensors()


CHECKS: dict[str, Callable[[_Subject], str]] = {
    check.__name__.removeprefix("_"): check
    for check in (_run, _statement, _plan, _sites, _updates, _files, _tensors)
}
"""In the order in which a fault explains the next one."""
# Without the signatures nothing is known; without the plan neither the sites nor the rounds are.
_NEEDED = {
    "run": tuple(CHECKS)[1:],
    "statement": tuple(CHECKS)[2:],
    "plan": ("sites", "updates"),
}


def verify_model(site: SiteFile, folder: Path) -> list[Check]:
    """Every check of the table.

    Raises:
        ValueError: there is no such folder, or the site's keys cannot be read.
        OSError: a file cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--model is '{folder}', which is no folder. Give a run's folder `model`."
        )
    own, coordinator = signing_keys(site)
    subject = _Subject(site, Claim(folder, coordinator), fingerprint(public_line(own)))
    return list(_checks(subject))


def _checks(subject: _Subject) -> Iterator[Check]:
    skipped: set[str] = set()
    for name, check in CHECKS.items():
        if name in skipped:
            yield Check(name, "--", "not looked at, for what it needs is not proved")
            continue
        try:
            yield Check(name, "ok", check(subject))
        except Unproven as error:
            skipped.update(_NEEDED.get(name, ()))
            yield Check(name, "no", str(error))


def is_verified(checks: list[Check]) -> bool:
    """Whether all of them say yes."""
    return all(check.state == "ok" for check in checks)


def verdict(folder: Path, checks: list[Check]) -> str:
    """The last line for a person."""
    named = cleaned(str(folder))
    if is_verified(checks):
        return f"verified: '{named}' is what an approved plan of this site made"
    failed = ", ".join(check.name for check in checks if check.state == "no")
    words = "is not proved to be what an approved plan of this site made"
    return f"NOT verified: '{named}' {words} ({failed})"


def require_verified(site: SiteFile, folder: Path) -> None:
    """Refuse a folder that is not verified.

    Raises:
        ValueError: names the first check that says no, and the next step; or as `verify_model` does.
    """
    checks = verify_model(site, folder)
    first = next((check for check in checks if check.state == "no"), None)
    if first is not None:
        raise ValueError(
            f"--model is '{folder}', which is not proved to be what an approved plan of this site "
            f"made: {first.name}: {first.words}. Look: wardround-site verify-model --model "
            f"'{folder}'. To take it all the same: --unverified"
        )
