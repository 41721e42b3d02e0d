"""Two people who approve: each with a key, both needed, either of them enough to end it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
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
        """A person with a key of their own."""
        self.keys[name] = new_key("signing")
        Approvers(self.site.state).add(name, public_line(self.keys[name]))

    def approve(self, name: str) -> bool:
        """One person says yes; whether that was enough."""
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
        """What a task would be told."""
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
    """Nobody has approved anything."""
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
    assert (office.approve("anna"), office.code()) == (False, PENDING)
    assert (office.approve("anna"), office.code()) == (
        False,
        PENDING,
    )  # the same person, again
    assert (office.approve("ben"), office.code()) == (True, "")
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
    # Nobody's approval of before counts afterwards.
    assert (office.approve("ben"), office.code()) == (False, f"plan_{state}")


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
    # Under another name it is nobody's.
    (folder / "approvals" / "ben.json").write_text(file.read_text())
    assert list(counted(keys=keys)) == ["anna"]


def _payload(file: Path) -> bytes:
    import base64

    return base64.b64decode(json.loads(file.read_text())["payload"])


def test_who_is_no_approver_any_more_has_not_approved(office: Office) -> None:
    office.approve("anna")
    office.approve("ben")
    approvers, ben = Approvers(office.site.state), public_line(office.keys["ben"])
    approvers.remove("ben")
    assert office.code() == PENDING
    approvers.add("ben", ben)  # who comes back signs again
    assert office.code() == PENDING
    approvers.remove("ben")
    with pytest.raises(ValueError, match="Approvers here: anna"):
        office.approve("ben")


def test_one_approval_of_before_is_not_enough_for_a_policy_of_two(
    office: Office,
) -> None:
    site = replace(office.site, policy=replace(office.site.policy, approvals=1))
    assert approve(
        office.plans, office.plans.find(office.digest), site, office.limits, "hand"
    )
    assert office.code() == PENDING


def test_a_policy_that_approves_by_itself_needs_no_two_people(office: Office) -> None:
    policy = replace(office.site.policy, approve="within_policy")
    office.site = replace(office.site, policy=policy)
    office.limits = replace(office.limits, policy=policy)
    assert office.code() == "policy"


def test_two_people_have_two_keys(office: Office) -> None:
    approvers = Approvers(office.site.state)
    with pytest.raises(ValueError, match="the key of anna"):
        approvers.add("carl", public_line(office.keys["anna"]))
    with pytest.raises(ValueError, match="approvers remove anna"):
        approvers.add("anna", public_line(new_key("signing")))
    with pytest.raises(ValueError, match="small letters"):
        approvers.add("../anna", public_line(new_key("signing")))
    (office.site.state / FILE_NAME).write_text('{"anna": "no key"}')
    with pytest.raises(ValueError, match="is damaged"):
        approvers.keys()


def test_the_ledger_says_who_approved(office: Office) -> None:
    office.approve("anna")
    office.approve("ben")
    decision = office.plans.find(office.digest).decision
    own = fingerprint(public_line(signing_keys(office.site)[0]))
    for _ in range(2):  # once for a decision, also after a restart
        with (
            Journal(office.site.state, own),
            Ledger(office.site.state, office.site.name, own) as ledger,
        ):
            ledger.approved(office.digest, decision.at, decision.by, decision.people)
    (line,) = [entry for _, entry in walk(ledger.path) if entry.what == "approved"]
    assert (line.plan, line.people) == (office.digest, decision.people)
    assert f"signed by anna ({decision.people['anna']}), ben (" in line.in_words()


@pytest.mark.e2e
@pytest.mark.slow
def test_the_commands(office: Office) -> None:
    folder = office.folder
    write_site_file(office.site, folder / "site.yaml")
    key = new_key("signing")
    write_key_pair(key, folder / "carl", folder / "carl.pub", comment="carl")
    added = site_command("approvers", "add", "carl", "--key", "carl.pub", folder=folder)
    assert (added.returncode, fingerprint(public_line(key)) in added.stdout) == (
        0,
        True,
    ), added.stderr
    listed = site_command("approvers", "list", folder=folder)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        "anna",
        "ben",
        "carl",
    ]
    nobody = site_command("approve", office.digest[:12], folder=folder)
    assert (nobody.returncode, "--as NAME --key FILE" in nobody.stderr) == (2, True), (
        nobody.stderr
    )
    half = site_command("approve", office.digest[:12], "--as", "carl", folder=folder)
    assert (half.returncode, "belong together" in half.stderr) == (2, True), half.stderr
    noted = site_command(
        "approve", office.digest[:12], "--as", "carl", "--key", "carl", folder=folder
    )
    assert (noted.returncode, "nother person" in noted.stdout) == (
        0,
        True,
    ), noted.stderr
    other = site_command(
        "approve", office.digest[:12], "--as", "anna", "--key", "carl", folder=folder
    )
    assert (other.returncode, "is not the key of anna" in other.stderr) == (2, True), (
        other.stderr
    )
    office.approve("ben")
    assert office.code() == ""
    shown = site_command("plan", office.digest[:12], folder=folder)
    assert "Approved by: ben, carl" in shown.stdout, shown.stdout + shown.stderr
    gone = site_command("approvers", "remove", "carl", folder=folder)
    assert gone.returncode == 0, gone.stderr
    assert office.code() == PENDING
