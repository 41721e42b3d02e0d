"""A coordinator that invents sites, counts one twice or swaps a key, and a site that has joined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support.hostile_settings import with_changes
from tests.support.join_world import World, joined_world
from tests.support.site_door import site_command
from tests.support.site_lab import WIDE
from tests.support.tiny import write_model, write_texts
from wardround.common.credentials import new_key, public_line
from wardround.common.wire.invitation import Registration, write_document

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def key_line() -> str:
    """A new public signing key."""
    return public_line(new_key("signing"))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A site that approves what lies inside its limits, and wants to know the others."""
    folder = tmp_path_factory.mktemp("rosters")
    texts, model = (
        write_texts(folder / "texts.csv", 48, seed=0),
        write_model(folder / "model", "bert"),
    )
    with joined_world(
        folder, texts, model, policy=replace(WIDE, require_peers=True)
    ) as world:
        world.join()
        yield world


def code_of(world: World, others: dict[str, str]) -> str:
    """What the site says to a plan with these other sites: a code; empty if it takes part."""
    sites = {world.site.name: world.key} | others
    world.plan(
        settings=with_changes(world.settings, {"num_clients": len(sites)}).to_dict(),
        sites=sites,
    )
    content = world.fleet.answer(world.hello(), world.key)
    refusal = content.config_records.get("refusal")
    return str(refusal["code"]) if refusal else ""


def pin(world: World, name: str) -> str:
    """`wardround-site peers add`, beside the running `join`; the public key that is pinned."""
    key: Any = new_key("signing")
    registration = Registration(
        name, public_line(new_key("node")), public_line(key), "SHA256:invitation"
    )
    told = write_document(registration, world.folder / f"{name}.json", key)
    done = site_command(
        "peers", "add", f"{name}.json", "--fingerprint", told, folder=world.folder
    )
    assert done.returncode == 0, done.stderr
    return registration.signing_key


def test_one_party_that_is_counted_twice(joined: World) -> None:
    key = key_line()
    assert code_of(joined, {"lakeside": key, "north": key}) == "policy"
    assert "lakeside and north have one key" in joined.said()


def test_invented_sites(joined: World) -> None:
    assert (
        code_of(joined, {f"site-{number}": key_line() for number in range(64)})
        == "policy"
    )
    assert "policy.max_sites is 64" in joined.said()
    assert code_of(joined, {"nobody-knows": key_line()}) == "unknown_peer"


def test_a_key_in_the_place_of_the_one_that_was_compared(joined: World) -> None:
    compared = pin(joined, "east")
    assert code_of(joined, {"east": key_line()}) == "unknown_peer"
    assert "east has another key" in joined.said()
    assert code_of(joined, {"east": compared}) == ""
