"""Rosters and pinned hospitals: comparison by people, refusals, the page of a plan."""

from __future__ import annotations

import hashlib
import json
import stat
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.door import wardround
from tests.support.fake_flwr import words_for
from tests.support.site_door import site_command
from tests.support.site_lab import WIDE, make_site
from tests.support.tiny import Make
from wardround.client.decisions import approve, limits_of
from wardround.client.kit.words.plan import describe
from wardround.client.peers import FILE_NAME, UNKNOWN_PEER, Peers
from wardround.client.plans import Plans
from wardround.client.policy.limits import Limits, Policy
from wardround.client.policy.roster import roster_refusals
from wardround.client.site_file import signing_keys, write_site_file
from wardround.common.credentials import (
    check_public_line,
    fingerprint,
    new_key,
    public_line,
)
from wardround.common.errors import SiteRefusal
from wardround.common.settings.tree import Settings
from wardround.common.wire.invitation import (
    Invitation,
    Registration,
    read_document,
    write_document,
)
from wardround.common.wire.refusals import REFUSALS
from wardround.common.wire.roster import names_with_one_key, roster_fingerprint
from wardround.common.wire.signing import PLAN, Plan, sign
from wardround.server.deployment.addresses import Addresses
from wardround.server.deployment.folder import (
    RegisteredSite,
    ServerFolder,
)
from wardround.server.deployment.sites import (
    invite_site,
    register_site,
)
from wardround.server.deployment.submit import submit

OWN = "SHA256:own"
ROSTER = {"st_marys": OWN, "lakeside": "SHA256:lakeside", "north": "SHA256:north"}


def plan_with(roster: Mapping[str, str]) -> Plan:
    """A plan with these sites."""
    return Plan(1, {}, dict(roster), 0.0, 86_400.0, {}, "")


def limits_with(peers: Mapping[str, str] | None = None, **policy: Any) -> Limits:
    """Limits of st_marys, which has pinned these sites."""
    return Limits(
        Policy(**policy), "st_marys", OWN, has_own_model=True, peers=peers or {}
    )


def codes(roster: Mapping[str, str], limits: Limits) -> list[tuple[str, str]]:
    """Return code and setting of every refusal."""
    return [(code, key) for code, key, _ in roster_refusals(plan_with(roster), limits)]


# --- rosters --------------------------------------------------------------------------


def test_a_rosters_fingerprint_is_a_hash_of_its_sorted_pairs() -> None:
    written = b'[["a","SHA256:1"],["b","SHA256:2"]]'
    expected = (
        f"SHA256:{b64encode(hashlib.sha256(written).digest()).decode().rstrip('=')}"
    )
    assert roster_fingerprint({"b": "SHA256:2", "a": "SHA256:1"}) == expected
    others = (
        {"a": "SHA256:2", "b": "SHA256:1"},
        {"a": "SHA256:1"},
        {'a","SHA256:1"],["b': "SHA256:2"},
    )
    assert expected not in [roster_fingerprint(other) for other in others]


def test_names_that_share_a_key_are_found() -> None:
    assert names_with_one_key(ROSTER) == []
    assert names_with_one_key(ROSTER | {"east": "SHA256:north"}) == ["east", "north"]


def test_one_key_written_in_two_ways_is_one_key() -> None:
    """Base64 is read leniently: a wrong sign changes the text, but not the key."""
    kind, encoded = public_line(new_key("signing")).split()
    written = f"{kind} {encoded[:30]}!{encoded[30:]} comment"
    assert check_public_line(written, "signing") == f"{kind} {encoded}"


# --- at the site ----------------------------------------------------------------------


def test_an_ordinary_roster_is_not_refused() -> None:
    assert codes(ROSTER, limits_with()) == []
    assert UNKNOWN_PEER in REFUSALS


def test_a_plan_of_too_many_sites_is_refused() -> None:
    most = {f"site-{number}": f"SHA256:{number}" for number in range(64)}
    assert codes(most, limits_with()) == []
    assert codes(most | {"one-more": "SHA256:64"}, limits_with()) == [
        ("policy", "num_clients")
    ]
    assert codes(ROSTER, limits_with(max_sites=2)) == [("policy", "num_clients")]


def test_one_key_under_two_names_is_refused() -> None:
    assert codes(ROSTER | {"east": "SHA256:north"}, limits_with()) == [("policy", "")]
    assert codes(ROSTER | {"st_marys2": OWN}, limits_with()) == [("policy", "")]


@pytest.mark.parametrize(
    "name", ["lakeside, north", "Lakeside", "lakeside ", "", "lаkeside", "a" * 65]
)
def test_a_name_that_people_could_misread_is_refused(name: str) -> None:
    """The third to last has a Cyrillic letter."""
    assert codes(ROSTER | {name: "SHA256:x"}, limits_with()) == [("policy", "")]


def test_another_key_than_the_pinned_one_is_always_refused() -> None:
    peers = {"lakeside": "SHA256:compared"}
    assert codes(ROSTER, limits_with(peers)) == [(UNKNOWN_PEER, "")]
    same = {"lakeside": "SHA256:lakeside", "elsewhere": "SHA256:e"}
    assert codes(ROSTER, limits_with(same)) == []


def test_only_a_policy_that_asks_for_it_refuses_sites_that_are_not_pinned() -> None:
    half = {"lakeside": "SHA256:lakeside"}
    assert codes(ROSTER, limits_with(half)) == []
    assert codes(ROSTER, limits_with(half, require_peers=True)) == [(UNKNOWN_PEER, "")]
    whole = half | {"north": "SHA256:north"}
    assert codes(ROSTER, limits_with(whole, require_peers=True)) == []


# --- the pins -------------------------------------------------------------------------


def registration_of(path: Path, name: str, **changed: Any) -> tuple[Registration, str]:
    """Write the registration of another hospital; return it and its fingerprint."""
    key: Any = changed.pop("key", None) or new_key("signing")
    registration = Registration(
        name, public_line(new_key("node")), public_line(key), "SHA256:invitation"
    )
    return registration, write_document(registration, path, key)


def test_a_pin_is_readable_by_this_user_only_and_can_be_removed(tmp_path: Path) -> None:
    read, told = registration_of(tmp_path / "lakeside.json", "lakeside")
    peers = Peers.open(tmp_path / "state")
    assert peers.get("lakeside") is None
    peers.add("lakeside", read, told)
    assert peers.get("lakeside") == fingerprint(read.signing_key)
    assert dict(Peers.open(tmp_path / "state")) == {
        "lakeside": fingerprint(read.signing_key)
    }
    file = tmp_path / "state" / FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {
        "lakeside": {"signing_key": read.signing_key, "registration": told}
    }
    Peers.open(tmp_path / "state").remove("lakeside")
    assert peers.get("lakeside") is None  # the file has changed under this reader
    with pytest.raises(ValueError, match=r"NAME is 'lakeside'.* no site"):
        peers.remove("lakeside")


def test_a_pin_is_not_replaced_and_one_key_has_one_name(tmp_path: Path) -> None:
    peers, key = Peers.open(tmp_path), new_key("signing")
    read, told = registration_of(tmp_path / "a", "lakeside", key=key)
    other, _ = registration_of(tmp_path / "b", "lakeside")
    peers.add("lakeside", read, told)
    peers.add("lakeside", read, told)
    next_step = "wardround-site peers remove lakeside"
    with pytest.raises(
        ValueError, match=rf"another key \({dict(peers)['lakeside']}\).*{next_step}"
    ):
        peers.add("lakeside", other, told)
    with pytest.raises(ValueError, match=f"pinned as lakeside.*{next_step}"):
        peers.add("north", read, told)
    with pytest.raises(ValueError, match="--name is 'St Mary'"):
        peers.add("St Mary", other, told)
    assert dict(peers) == {"lakeside": fingerprint(read.signing_key)}


@pytest.mark.parametrize(
    "content",
    ["no JSON", '{"a": {}}', '{"a": {"signing_key": "x", "registration": ""}}'],
)
def test_pins_that_were_damaged_stop_a_plan(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ValueError, match=rf"{FILE_NAME}.* wardround-site peers add"):
        codes(ROSTER, limits_with(Peers.open(tmp_path)))


def test_a_plan_shows_which_sites_are_pinned(
    tmp_path: Path, tiny_texts: Path, tiny_model: Path, make_settings: Make
) -> None:
    """The limits of a real site, opened before a pin is made, know the pin at once."""
    coordinator: Any = new_key("signing")
    (tmp_path / "coordinator.pub").write_text(public_line(coordinator))
    site = make_site(
        tmp_path,
        9092,
        tiny_texts,
        model=tiny_model,
        policy=replace(WIDE, approve="by_hand"),
    )
    key, trusted = signing_keys(site)
    limits, plans = limits_of(site, key), Plans(site, trusted)
    words = (
        "engine=deployment",
        "data.label_names=[health,money,sport]",
        "num_clients=3",
        "threads=1",
    )
    settings: Settings = make_settings(*words, "evaluation.where=server").for_sites()
    lakeside, told = registration_of(tmp_path / "lakeside.json", "lakeside")
    roster = {
        site.name: fingerprint(public_line(key)),
        "lakeside": fingerprint(lakeside.signing_key),
        "north": "SHA256:north",
    }
    plan = Plan(1, settings.to_dict(), roster, 0.0, 86_400.0, {}, "")
    digest = plans.add(sign(PLAN, plan, coordinator))

    def shown() -> str:
        return "\n".join(describe(plans.find(digest), None, limits))

    assert f"roster    {roster_fingerprint(roster)}" in shown()
    assert "not pinned here: lakeside, north" in shown()
    Peers.open(site.state).add("lakeside", lakeside, told)
    assert "pinned here with this key: lakeside" in shown()
    assert "not pinned here: north" in shown()
    another, _ = registration_of(tmp_path / "north.json", "north")
    Peers.open(site.state).add("north", another, told)
    assert "ANOTHER KEY than the one pinned here: north" in shown()
    compared = fingerprint(another.signing_key)
    (refused,) = [line for line in shown().splitlines() if "NO  north" in line]
    assert "SHA256:north" in refused
    assert compared in refused
    with pytest.raises(SiteRefusal) as no:
        approve(plans, plans.find(digest), site, limits, "hand")
    assert no.value.code == UNKNOWN_PEER


# --- the commands ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, tiny_texts: Path) -> Path:
    """The folder of a site, with its site.yaml."""
    write_site_file(make_site(tmp_path, 9092, tiny_texts), tmp_path / "site.yaml")
    return tmp_path


def test_a_hospital_is_pinned_once_its_fingerprint_was_compared(folder: Path) -> None:
    read, told = registration_of(folder / "lakeside.json", "lakeside")
    asked = site_command("peers", "add", "lakeside.json", folder=folder)
    assert asked.returncode == 2, asked.stderr
    assert "--fingerprint is missing" in asked.stderr
    assert told in asked.stdout
    wrong = site_command(
        "peers", "add", "lakeside.json", "--fingerprint", "SHA256:other", folder=folder
    )
    assert wrong.returncode == 2, wrong.stderr
    assert told in wrong.stderr
    assert not (folder / "state" / FILE_NAME).exists()
    done = site_command(
        "peers", "add", "lakeside.json", "--fingerprint", told, folder=folder
    )
    assert done.returncode == 0, done.stderr
    listed = site_command("peers", "list", folder=folder)
    for fact in ("lakeside", told, fingerprint(read.signing_key)):
        assert fact in listed.stdout
    named = ("peers", "add", "lakeside.json", "--name", "north", "--fingerprint", told)
    assert "pinned as lakeside" in site_command(*named, folder=folder).stderr
    assert site_command("peers", "remove", "lakeside", folder=folder).returncode == 0
    assert site_command(*named, folder=folder).returncode == 0
    assert list(Peers.open(folder / "state")) == ["north"]


@pytest.mark.parametrize("file", ["registration-st_marys.json", "registration.json"])
def test_a_site_does_not_pin_itself(folder: Path, file: str) -> None:
    """Earlier versions gave the registration of every site the second name."""
    own = signing_keys(make_site(folder, 9092, folder / "x"))[0]
    _, told = registration_of(folder / file, "elsewhere", key=own)
    for words in ((file,), (file, "--name", "north")):
        done = site_command(
            "peers", "add", *words, "--fingerprint", told, folder=folder
        )
        assert done.returncode == 2, done.stderr
        assert "the key of this site itself" in done.stderr
    (line,) = [
        line
        for line in site_command("peers", "list", folder=folder).stdout.splitlines()
        if told in line
    ]
    assert line.startswith("READ OUT")


def test_a_file_that_was_changed_is_not_pinned(folder: Path) -> None:
    _, told = registration_of(folder / "lakeside.json", "lakeside")
    envelope = json.loads((folder / "lakeside.json").read_text())
    forged, _ = registration_of(folder / "other.json", "lakeside")
    envelope["payload"] = b64encode(json.dumps(vars(forged)).encode()).decode()
    (folder / "lakeside.json").write_text(json.dumps(envelope))
    done = site_command(
        "peers", "add", "lakeside.json", "--fingerprint", told, folder=folder
    )
    assert done.returncode == 2, done.stderr
    assert "lakeside.json' was changed after it was signed" in done.stderr


def test_the_policys_new_keys_are_written_and_read(folder: Path) -> None:
    content = yaml.safe_load((folder / "site.yaml").read_text())
    assert content["policy"]["max_sites"] == 64
    assert content["policy"]["require_peers"] is False


# --- at the coordinator ---------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    """A server folder without a running server."""
    return ServerFolder.create(tmp_path / "server", Addresses(("localhost",)))


def test_a_key_is_registered_once_however_it_is_written(
    server: ServerFolder, tmp_path: Path
) -> None:
    key: Any = new_key("signing")
    kind, encoded = public_line(key).split()
    lines = {"a": f"{kind} {encoded}", "b": f"{kind} {encoded[:30]}!{encoded[30:]}"}
    for name, line in lines.items():
        _, told = read_document(Invitation, invite_site(server, name)[0])
        answer = Registration(name, public_line(new_key("node")), line, told)
        write_document(answer, tmp_path / name, key)
    register_site(server, "a", tmp_path / "a")
    with pytest.raises(ValueError, match="a key of site 'a'"):
        register_site(server, "b", tmp_path / "b")


def test_submit_refuses_one_key_under_two_names(
    server: ServerFolder, tmp_path: Path
) -> None:
    """A sites.json of an earlier version could hold this."""
    kind, encoded = public_line(new_key("signing")).split()
    lines = {"a": f"{kind} {encoded}", "b": f"{kind} {encoded[:30]}!{encoded[30:]}"}
    with server.changing_sites() as sites:
        for name, line in lines.items():
            sites[name] = RegisteredSite(
                public_line(new_key("node")), line, f"SHA256:{name}"
            )
    with pytest.raises(
        ValueError, match=r"a and b have the same key .* wardround server unregister b"
    ):
        submit(words_for(tmp_path), server)


def test_the_coordinator_shows_the_roster_that_a_site_sees(
    server: ServerFolder,
) -> None:
    keys = {name: public_line(new_key("signing")) for name in ("b", "a")}
    with server.changing_sites() as sites:
        for name, key in keys.items():
            sites[name] = RegisteredSite(
                public_line(new_key("node")), key, f"SHA256:{name}"
            )
    expected = roster_fingerprint(
        {name: fingerprint(key) for name, key in keys.items()}
    )
    said = wardround("server", "sites", "--dir", str(server.path))
    assert said.code == 0, said.err
    assert expected in said.out
