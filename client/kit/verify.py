"""`wardround-site verify-model`: checks that an approved plan of this site made a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

from wardround.client.kit.words.plan import STATES
from wardround.client.plans import SHORT, Known, Plans
from wardround.client.site_file import SiteFile, signing_keys
from wardround.common.credentials import fingerprint, public_line
from wardround.common.errors import NotProven
from wardround.common.ledger import FILE_NAME as LEDGER
from wardround.common.ledger import read_ledger
from wardround.common.provenance import Claim
from wardround.common.wire.messages import TRAIN
from wardround.common.words import cleaned

_NOT_CHECKED = "not checked, because an earlier check failed"


@dataclass(frozen=True)
class Proof:
    """The outcome of one check of a released model."""

    name: str
    """Row of the table `PROOFS`."""
    state: Literal["ok", "no", "--"]
    """`--`: not checked, because a check that it depends on failed."""
    words: str

    def in_words(self) -> str:
        """Return one line for a person; names that others chose are made printable."""
        line = f"{self.state:<4}{self.name:<11}{self.words}"
        return cleaned(line)


@dataclass(frozen=True)
class _Released:
    """A released model, and the site that checks it."""

    site: SiteFile
    claim: Claim
    own: str
    """Fingerprint of the key that signs this site's answers."""

    @cached_property
    def known(self) -> Known:
        """The plan as this site keeps it. Raises NotProven if it did not receive it."""
        assert self.claim.coordinator is not None, "a site trusts a key"
        digest = self.claim.provenance.plan
        plans = Plans(self.site, self.claim.coordinator)
        known = plans.get(digest)
        if known is None:
            raise NotProven(
                f"this site did not receive plan {digest[:SHORT]}, or an older key "
                "signed it"
            )
        return known


def _plan(on: _Released) -> str:
    """Check that the plan was approved here, and still is."""
    decision = on.known.decision
    short = on.known.short
    if decision.state != "approved":
        raise NotProven(f"plan {short} at this site: {STATES[decision.state]}")
    approved = datetime.fromtimestamp(decision.at, UTC)
    day = approved.strftime("%Y-%m-%d")
    by = decision.by or "hand"
    return f"plan {short} was approved here on {day}, by {by}"


def _sites(on: _Released) -> str:
    """Check that the sites of the model are those of the plan, this one among them."""
    roster = on.known.plan.sites
    if on.claim.provenance.sites != roster:
        raise NotProven("the sites or their keys differ from the plan")
    own_key = roster.get(on.site.name)
    if own_key != on.own:
        raise NotProven(f"{on.site.name} is not in the plan under its own key")
    names = ", ".join(sorted(roster))
    return f"{names}, as in the plan"


def _updates(on: _Released) -> str:
    """Check each update of this site in the model against its ledger."""
    found = on.claim.provenance
    known = on.known
    _check_rounds(on)
    own = set()
    for number, name, answer in found.updates:
        if name == on.site.name:
            own.add((number, answer))
    left = _updates_that_left(on.site, found.plan)
    unknown = sorted(own - left)
    if unknown:
        number, _ = unknown[0]
        raise NotProven(
            f"this site's update of round {number} did not leave it, by its ledger. "
            "See: wardround-site ledger show"
        )
    if not left:
        raise NotProven(f"no update left this site for plan {known.short}")
    return (
        f"{len(own)} of this site are in it, of {len(left)} that left for this plan by "
        "its ledger"
    )


def _check_rounds(on: _Released) -> None:
    """Raises NotProven if the model names rounds or sites that the plan does not have."""
    found = on.claim.provenance
    most = on.known.settings.num_rounds
    last = min(found.round or most, most)  # version 1 does not hold the round
    places = []
    strange = []
    for number, name, _ in found.updates:
        places.append((number, name))
        is_planned = name in on.known.plan.sites
        if not is_planned or not 0 < number <= last:
            strange.append(f"round {number} of {name}")
    if strange:
        raise NotProven(f"the plan does not have these updates: {', '.join(strange)}")
    num_different = len(set(places))
    if num_different < len(places):
        raise NotProven("an update is named twice")


def _updates_that_left(site: SiteFile, plan: str) -> set[tuple[int, str]]:
    """Return round and hash of the signed answer of every update, by the ledger."""
    try:
        entries = read_ledger(site.state / LEDGER).values()
    except ValueError as error:
        raise NotProven(f"the ledger cannot be read: {error}") from None
    wanted = ("leaves", TRAIN, plan, "left")
    left = set()
    for before, entry in pairwise(entries):
        found = (before.what, before.kind, before.plan, entry.what)
        if found == wanted:
            update = (before.round, entry.statement)
            left.add(update)
    return left


PROOFS: dict[str, Callable[[_Released], str]] = {
    "run": lambda on: on.claim.check_run(),
    "statement": lambda on: on.claim.check_statement(),
    "plan": _plan,
    "sites": _sites,
    "updates": _updates,
    "files": lambda on: on.claim.check_files(),
    "tensors": lambda on: on.claim.check_tensors(),
}
"""The checks, in the order in which an earlier fault explains a later one."""
# Without the signatures nothing is known; without the plan neither sites nor rounds are.
_DEPENDENT = {
    "run": tuple(PROOFS)[1:],
    "statement": tuple(PROOFS)[2:],
    "plan": ("sites", "updates"),
}


def verify_model(site: SiteFile, folder: Path) -> list[Proof]:
    """Run every check of the table.

    Raises:
        ValueError: there is no such folder, or the site's keys cannot be read.
        OSError: a file cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--model is '{folder}', which is not a folder. Give a run's folder `model`."
        )
    own, coordinator = signing_keys(site)
    claim = Claim(folder, coordinator)
    line = public_line(own)
    own_key = fingerprint(line)
    released = _Released(site, claim, own_key)
    return list(_proofs(released))


def _proofs(released: _Released) -> Iterator[Proof]:
    skipped: set[str] = set()
    for name, check in PROOFS.items():
        if name in skipped:
            yield Proof(name, "--", _NOT_CHECKED)
            continue
        try:
            yield Proof(name, "ok", check(released))
        except NotProven as error:
            dependent = _DEPENDENT.get(name, ())
            skipped.update(dependent)
            yield Proof(name, "no", str(error))


def is_verified(proofs: Sequence[Proof]) -> bool:
    """Return if every check passed."""
    return all(proof.state == "ok" for proof in proofs)


def report(folder: Path, proofs: Sequence[Proof]) -> str:
    """Return one line for each check, and the verdict as the last line."""
    lines = [proof.in_words() for proof in proofs]
    last = verdict(folder, proofs)
    lines.append(last)
    return "\n".join(lines)


def verdict(folder: Path, proofs: Sequence[Proof]) -> str:
    """Return the verdict in one line."""
    name = cleaned(str(folder))
    if is_verified(proofs):
        return f"verified: an approved plan of this site made '{name}'"
    failed = [proof.name for proof in proofs if proof.state == "no"]
    return (
        f"NOT verified: no proof that an approved plan of this site made '{name}' "
        f"({', '.join(failed)})"
    )


def require_verified(site: SiteFile, folder: Path) -> None:
    """Refuse a folder that is not verified.

    Raises:
        ValueError: a check failed, which the text names; or as `verify_model` does.
    """
    for proof in verify_model(site, folder):
        if proof.state == "no":
            raise ValueError(
                f"--model is '{folder}', and there is no proof that an approved plan of "
                f"this site made it: {proof.name}: {proof.words}. Next: wardround-site "
                f"verify-model --model '{folder}'. To use it anyway: --unverified"
            )
