"""Recipes: reviewed settings under one name and a version, with ranges for some of them.

A recipe is a file of `conf/recipe/`. Hydra composes it at the coordinator. A site always reads the
file of its own installation, and lists every setting of a plan that deviates from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from wardround.common.places import CONF
from wardround.common.settings.tree import Settings

FOLDER = CONF / "recipe"
ABOUT = "about_recipe"
"""Node of a recipe's file that is not a setting: words, ranges and models."""
FREE = frozenset(
    {
        "arm",
        "run_dir",
        "seed",
        "device",
        "threads",
        "attention",
        "recipe",
        "model.label",
        "model.source",
        "model.name",
        "model.revision",
        "model.sha256",
        "train.on_collapse",
        "train.collapse_rounds",
        "train.gradient_checkpointing",
        "strategy.wait_seconds",
        "strategy.round_timeout_seconds",
        "strategy.ask_again_seconds",
        "evaluation.target_accuracy",
        "evaluation.patience",
        "evaluation.batch_size",
    }
)
"""Settings that no recipe decides: names, places, waits, and those that the policy checks."""
FREE_GROUPS = frozenset({"data", "protocol", "partition", "engine", "personalisation"})
"""Groups that no recipe decides; a site describes its own texts."""


@dataclass(frozen=True)
class Range:
    """The values that a recipe allows for one setting."""

    low: float | None = None
    high: float | None = None
    one_of: tuple[object, ...] = ()
    """The allowed values; if it is not empty, `low` and `high` are None."""

    def __contains__(self, value: object) -> bool:
        if self.one_of:
            return value in self.one_of
        if not isinstance(value, int | float):
            return False
        return (self.low or 0) <= value <= (self.high or 0)

    def in_words(self) -> str:
        """Return the range as words for people."""
        if self.one_of:
            return f"one of {', '.join(map(str, self.one_of))}"
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Deviation:
    """A setting of a plan that differs from its recipe."""

    key: str
    value: object
    allowed: str
    """The recipe's value or range, in words."""


@dataclass(frozen=True)
class Recipe:
    """One recipe of this installation."""

    name: str
    """Name with version: `fine_tune@1`."""
    words: str
    """Its purpose, in one sentence."""
    settings: Mapping[str, object]
    """Its values by dotted key."""
    ranges: Mapping[str, Range]
    """The allowed values by dotted key. Its own value is in `settings`."""
    models: Mapping[str, str]
    """SHA-256 of model.safetensors by `model.name`."""

    def deviations(self, settings: Settings) -> Iterator[Deviation]:
        """Yield every setting that is not free and has no value that the recipe allows."""
        for key, value in settings.flat().items():
            if key in FREE or key.split(".")[0] in FREE_GROUPS:
                continue
            if key in self.ranges:
                if value not in self.ranges[key]:
                    yield Deviation(key, value, self.ranges[key].in_words())
            elif value != self.settings[key]:
                yield Deviation(key, value, f"{self.settings[key]}")


@cache
def recipes() -> dict[str, Recipe]:
    """Return the recipes of this installation, by name with version."""
    found = (_read(path) for path in sorted(FOLDER.glob("*.yaml")))
    return {recipe.name: recipe for recipe in found}


def pinned_models() -> dict[str, str]:
    """Return the SHA-256 of the weights of every model that a recipe names, by `model.name`.

    All of them are in installed packages, so configuration and tokenizer come from this machine.
    """
    return {
        name: digest
        for recipe in recipes().values()
        for name, digest in recipe.models.items()
    }


def _read(path: Path) -> Recipe:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    about = content.pop(ABOUT)
    content.pop("defaults", None)
    ranges = {
        key: Range(
            limits.get("from"), limits.get("to"), tuple(limits.get("one_of", ()))
        )
        for key, limits in about["ranges"].items()
    }
    return Recipe(
        name=content["recipe"],
        words=about["words"],
        settings=_dotted(content),
        ranges=ranges,
        models=about["models"],
    )


def _dotted(content: Mapping[str, Any]) -> dict[str, object]:
    """Return nested settings by dotted key, with lists as tuples."""
    found: dict[str, object] = {}
    for key, value in content.items():
        members = value.items() if isinstance(value, dict) else [("", value)]
        for inner, own in members:
            name = f"{key}.{inner}" if inner else key
            found[name] = tuple(own) if isinstance(own, list) else own
    return found
