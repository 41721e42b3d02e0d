"""Recipes: their settings, the answer of the strict policy, and the digests of released ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest

from tests.support.hostile_settings import with_changes
from wardround.client.policy.limits import Limits, Policy
from wardround.client.policy.verdict import judge_settings
from wardround.common.recipes import FREE, FREE_GROUPS, pinned_models, recipes
from wardround.common.settings.tree import Settings
from wardround.server.compose import compose

PINNED: dict[str, str] = {}
"""SHA-256 of the resolved settings by recipe. From release 0.2.0 on each recipe keeps its own:
other settings are another version of the recipe."""
FIRST_PINNED_RELEASE = (0, 2, 0)


BESIDE: dict[str, dict[str, Any]] = {
    "num_rounds": {"train.schedule_rounds": 50},
    "train.schedule_rounds": {"num_rounds": 1},
    "strategy.min_sites": {"num_clients": 64},
    "adapters.rank": {"adapters.alpha": 1.0},
    "adapters.alpha": {"adapters.rank": 64},
}
"""Settings that the ends of a range need with them."""


def resolved(name: str) -> Settings:
    """A recipe's settings for sites, as `wardround submit recipe=…` composes them."""
    group = name.partition("@")[0]
    words = [
        f"recipe={group}",
        "engine=deployment",
        "data=files",
        "data.label_names=[a,b]",
        "model=minilm",
        "run_dir=x",
        "evaluation.where=sites",
    ]
    return compose(words).settings.for_sites()


def pinned(name: str) -> Settings:
    """A recipe's settings, with the hash of a model that sites know."""
    known = min(pinned_models().values())
    return with_changes(resolved(name), {"model.sha256": known})


def refused(settings: Settings, limits: Limits) -> list[str]:
    """Return the keys that the policy refuses."""
    judged = judge_settings(settings, limits)
    return [line.key for line in judged if not line.is_allowed]


def digest_of(name: str) -> str:
    """Return the SHA-256 of all settings that the recipe decides."""
    decided = {
        key: value
        for key, value in resolved(name).flat().items()
        if key not in FREE and key.split(".")[0] not in FREE_GROUPS
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def test_these_recipes_are_shipped() -> None:
    assert sorted(recipes()) == ["adapters@1", "fine_tune@1"]


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_settings_of_a_recipe_do_not_deviate_from_it(name: str) -> None:
    settings = resolved(name)
    assert settings.recipe == name
    assert list(recipes()[name].deviations(settings)) == []


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_strict_policy_allows_a_recipe(name: str) -> None:
    settings = pinned(name)
    policy = Policy(recipes=(name,), counts=True)
    limits = Limits(policy, "north", "SHA256:north", False)
    assert refused(settings, limits) == []
    other = replace(limits, policy=Policy(recipes=("other@1",), counts=True))
    assert refused(settings, other) == ["recipe"]


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_strict_policy_allows_both_ends_of_every_range(name: str) -> None:
    """A range that a site refuses would be no help to the coordinator."""
    settings = pinned(name)
    limits = Limits(Policy(counts=True), "north", "SHA256:north", False)
    for key, allowed in recipes()[name].ranges.items():
        for value in allowed.one_of or (allowed.low, allowed.high):
            whole = isinstance(settings.flat()[key], int)
            ends = {key: int(value) if whole else value}  # type: ignore[call-overload]
            changed = with_changes(settings, BESIDE.get(key, {}) | ends)
            assert refused(changed, limits) == [], (key, value)


def test_released_recipes_keep_their_digests() -> None:
    installed = tuple(int(part) for part in version("wardround").split(".")[:3])
    if installed >= FIRST_PINNED_RELEASE:
        assert set(recipes()) <= set(PINNED)
    assert {name: digest_of(name) for name in PINNED} == PINNED
    # Recipes with different settings have different digests.
    assert digest_of("fine_tune@1") != digest_of("adapters@1")
