"""Two people must approve a plan, each with a key. One of them is enough to end it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.support.site_door import site_command
from tests.support.site_lab import WIDE, make_site
from tests.support.tiny import Make
from wardround.client.approvals import FILE_NAME, Approvers, who_approved
from wardround.client.decisions import Person, approve, executed, limits_of
from wardround.client.node.journal import Journal
from wardround.client.node.ledger import Ledger
from wardround.client.plans import Plans
from wardround.client.site_file import SiteFile, signing_keys, write_site_file
from wardround.common.credentials import (
    fingerprint,
    new_key,
    public_line,
    write_key_pair,
)
from wardround.common.errors import SiteRefusal
from wardround.common.ledger import walk
from wardround.common.wire.refusals import PENDING
from wardround.common.wire.signing import PLAN, Plan, sign

DAY = 86_400.0
NOW = time.time()


class Office:
    """A site whose policy asks for two people, and a plan."""

    def __init__(self, folder: Path, texts: Path, model: Path, settings: Any) -> None:
        self.folder, coordinator = folder, new_key("signing")
        (folder / "coordinator.pub").write_text(
            public_line(coordinator), encoding="ascii"
        )
        policy = replace(WIDE, approve="by_hand", approvals=2, min_changed_texts=1)
        self.site: SiteFile = make_site(folder, 9092, texts, model=model, policy=policy)
        key, trusted = signing_keys(self.site)
        self.plans, self.limits = Plans(self.site, trusted), limits_of(self.site, key)
        sites = {self.site.name: fingerprint(public_line(key))}
        plan = Plan(
            2, settings.for_sites().to_dict(), sites, NOW, NOW + 30 * DAY, {}, ""
        )
        self.digest = self.plans.add(sign(PLAN, plan, coordinator))  # type: ignore[arg-type]
        self.keys: dict[str, Any] = {}
        for name in ("anna", "ben"):
            self.add(name)

    def add(self, name: str) -> None:
        """Add a person with a new key."""
        self.keys[name] = new_key("signing")
        Approvers(self.site.state).add(name, public_line(self.keys[name]))

    def approve(self, name: str) -> bool:
        """Let one person approve. Return True if the plan is now approved."""
        known = self.plans.find(self.digest)
        return approve(
            self.plans,
            known,
            self.site,
            self.limits,
            "hand",
            Person(name, self.keys[name]),
        )

    def code(self) -> str:
        """Return the code of the refusal that a task would get; empty if it may run."""
        try:
            executed(
                self.plans, self.digest, self.site, self.limits, now=NOW + 10 * DAY
            )
        except SiteRefusal as no:
            return no.code
        return ""


@pytest.fixture
def office(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path, make_settings: Make
) -> Office:
    """Return a site at which nobody has approved anything."""
    words = (
        "engine=deployment",
        "data.label_names=[health,money,sport]",
        "num_clients=1",
    )
    settings = make_settings(
        *words, "train.last_batch=even", "evaluation.where=server", "threads=1"
    )
    return Office(tmp_path, tiny_texts, tiny_model, settings)


def test_a_plan_needs_two_people(office: Office) -> None:
    with pytest.raises(ValueError, match="--as NAME --key FILE"):
        approve(
            office.plans,
            office.plans.find(office.digest),
            office.site,
            office.limits,
            "hand",
        )
    for _ in range(2):  # the second time it is still the same person
        assert not office.approve("anna")
        assert office.code() == PENDING
    assert office.approve("ben")
    assert office.code() == ""
    people = office.plans.find(office.digest).decision.people
    assert people == {
        name: fingerprint(public_line(key)) for name, key in office.keys.items()
    }


@pytest.mark.parametrize("state", ["rejected", "revoked"])
def test_one_objection_ends_it(office: Office, state: Any) -> None:
    office.approve("anna")
    office.approve("ben")
    office.plans.object(office.plans.find(office.digest), state, "")
    assert office.code() == f"plan_{state}"
    # Earlier approvals no longer count.
    assert not office.approve("ben")
    assert office.code() == f"plan_{state}"


def test_an_approval_counts_for_its_person_its_plan_and_its_texts(
    office: Office,
) -> None:
    office.approve("anna")
    folder = office.plans.folder(office.digest)
    keys = Approvers(office.site.state).keys()
    (file,) = (folder / "approvals").iterdir()

    def counted(**changed: Any) -> dict[str, str]:
        data = json.loads(_payload(file))["data"]
        asked = {
            "site": office.site.name,
            "plan": office.digest,
            "data": data,
            "keys": keys,
        } | changed
        return who_approved(folder, **asked)

    assert list(counted()) == ["anna"]
    other: dict[str, Any] = {"site": "north", "plan": "0" * 64, "data": "0" * 64}
    for key, value in other.items():
        assert counted(**{key: value}) == {}
    assert counted(keys={"anna": keys["ben"]}) == {}
    # Under another name the approval does not count.
    (folder / "approvals" / "ben.json").write_text(file.read_text())
    assert list(counted(keys=keys)) == ["anna"]


def _payload(file: Path) -> bytes:
    import base64

    return base64.b64decode(json.loads(file.read_text())["payload"])


def test_the_approval_of_a_removed_person_does_not_count(office: Office) -> None:
    office.approve("anna")
    office.approve("ben")
    approvers = Approvers(office.site.state)
    approvers.remove("ben")
    assert office.code() == PENDING
    # A person who is added again must sign again.
    approvers.add("ben", public_line(office.keys["ben"]))
    assert office.code() == PENDING
    approvers.remove("ben")
    with pytest.raises(ValueError, match=r"--as is 'ben'.*: anna\..*approvers add"):
        office.approve("ben")


def test_one_earlier_approval_is_not_enough_for_a_policy_of_two(
    office: Office,
) -> None:
    site = replace(office.site, policy=replace(office.site.policy, approvals=1))
    assert approve(
        office.plans, office.plans.find(office.digest), site, office.limits, "hand"
    )
    assert office.code() == PENDING


def test_a_policy_that_approves_within_its_limits_needs_no_two_people(
    office: Office,
) -> None:
    policy = replace(office.site.policy, approve="within_policy")
    office.site = replace(office.site, policy=policy)
    office.limits = replace(office.limits, policy=policy)
    assert office.code() == "policy"


def test_each_person_has_one_key_of_their_own(office: Office) -> None:
    approvers = Approvers(office.site.state)
    with pytest.raises(ValueError, match="key of anna"):
        approvers.add("carl", public_line(office.keys["anna"]))
    with pytest.raises(ValueError, match="approvers remove anna"):
        approvers.add("anna", public_line(new_key("signing")))
    with pytest.raises(ValueError, match=r"NAME is '\.\./anna'"):
        approvers.add("../anna", public_line(new_key("signing")))


def test_a_damaged_file_of_approvers_is_refused(office: Office) -> None:
    (office.site.state / FILE_NAME).write_text('{"anna": "no key"}')
    with pytest.raises(ValueError, match=rf"{FILE_NAME}.*approvers add NAME"):
        Approvers(office.site.state).keys()


def test_the_ledger_says_who_approved(office: Office) -> None:
    office.approve("anna")
    office.approve("ben")
    decision = office.plans.find(office.digest).decision
    own = fingerprint(public_line(signing_keys(office.site)[0]))
    for _ in range(2):  # one line for a decision, also after a restart
        with (
            Journal(office.site.state, own),
            Ledger(office.site.state, office.site.name, own) as ledger,
        ):
            ledger.approved(office.digest, decision.at, decision.by, decision.people)
    (line,) = [entry for _, entry in walk(ledger.path) if entry.what == "approved"]
    assert (line.plan, line.people) == (office.digest, decision.people)
    words = line.in_words()
    for name, key in decision.people.items():
        assert f"{name} ({key})" in words


@pytest.mark.e2e
@pytest.mark.slow
def test_two_people_approve_a_plan_with_the_commands(office: Office) -> None:
    folder = office.folder
    plan = office.digest[:12]
    write_site_file(office.site, folder / "site.yaml")
    key = new_key("signing")
    write_key_pair(key, folder / "carl", folder / "carl.pub", comment="carl")
    added = site_command("approvers", "add", "carl", "--key", "carl.pub", folder=folder)
    assert added.returncode == 0, added.stderr
    assert fingerprint(public_line(key)) in added.stdout
    listed = site_command("approvers", "list", folder=folder)
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == ["anna", "ben", "carl"]

    def approve_as(*words: str) -> CompletedProcess[str]:
        return site_command("approve", plan, *words, folder=folder)

    nobody = approve_as()
    assert nobody.returncode == 2, nobody.stderr
    assert "policy.approvals is 2" in nobody.stderr
    assert "--as NAME --key FILE" in nobody.stderr
    half = approve_as("--as", "carl")
    assert half.returncode == 2, half.stderr
    assert "--as NAME --key FILE" in half.stderr
    assert "policy.approvals" not in half.stderr
    first = approve_as("--as", "carl", "--key", "carl")
    assert first.returncode == 0, first.stderr
    assert office.code() == PENDING
    other = approve_as("--as", "anna", "--key", "carl")
    assert other.returncode == 2, other.stderr
    anna = fingerprint(public_line(office.keys["anna"]))
    assert f"--key is not the key of anna, which is {anna}" in other.stderr
    office.approve("ben")
    assert office.code() == ""
    shown = site_command("plan", plan, folder=folder)
    assert "Approved by: ben, carl" in shown.stdout, shown.stdout + shown.stderr
    gone = site_command("approvers", "remove", "carl", folder=folder)
    assert gone.returncode == 0, gone.stderr
    assert office.code() == PENDING
