"""Rules for the model and the recipe of a plan."""

from __future__ import annotations

from wardround.client.policy.limits import Limits
from wardround.client.policy.rule import Rule
from wardround.common.model_files import FILES_PREFIX, WEIGHTS_PREFIX
from wardround.common.recipes import pinned_models, recipes
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings


def names_of(model: ModelSettings) -> set[str]:
    """Return the entries of `policy.models` that allow a model by its name."""
    if not model.revision:
        return {model.name}
    return {model.name, f"{model.name}@{model.revision}"}


def is_pinned(listed: tuple[str, ...] | str | None) -> bool:
    """Return True if a list of models names files by their hashes."""
    return isinstance(listed, tuple) and any(
        entry.startswith((WEIGHTS_PREFIX, FILES_PREFIX)) for entry in listed
    )


def _is_model_listed(value: object, settings: Settings, limits: Limits) -> bool:
    listed = limits.policy.models
    model = settings.model
    if listed == "any":
        return True
    if listed is None:
        return _is_pinned_by_a_recipe(model, limits.has_own_model)
    if names_of(model) & set(listed):
        return True
    # Pinned files are checked against their hashes when they are opened. The hash of the
    # weights alone does not cover configuration and tokenizer: only a folder of the
    # site's own keeps those from the server.
    return any(
        entry.startswith(FILES_PREFIX)
        or (entry.startswith(WEIGHTS_PREFIX) and limits.has_own_model)
        for entry in listed
    )


def _is_pinned_by_a_recipe(model: ModelSettings, has_own_model: bool) -> bool:
    if model.sha256 is None:
        return False
    if has_own_model and model.sha256 in pinned_models().values():
        return True
    is_package = model.source == "package"
    return is_package and pinned_models().get(model.name) == model.sha256


def _describe_models(limits: Limits) -> str:
    listed = limits.policy.models
    own = "this site's own folder counts (model:), " if limits.has_own_model else ""
    if listed == "any":
        return f"{own}any model: look at it"
    if listed is None:
        return (
            f"{own}a model that a recipe of this version pins; "
            "policy.models lists no other"
        )
    return f"{own}one of {', '.join(listed)}; sha256: counts for this site's own folder only"


def _describe_recipes(limits: Limits) -> str:
    listed = limits.policy.recipes
    if listed is None:
        return "a name; deviations from this site's own copy of the recipe are shown"
    return f"one of {', '.join(listed)}, without a deviation (policy.recipes)"


def _follows_recipe(value: object, settings: Settings, limits: Limits) -> bool:
    listed = limits.policy.recipes
    if listed is None:
        return True
    recipe = recipes().get(str(value))
    if recipe is None or value not in listed:
        return False
    return not any(recipe.deviations(settings))


MODEL = Rule("listed", _describe_models, _is_model_listed)
WEIGHTS = Rule(
    "listed",
    lambda limits: "the file of weights must have this SHA-256",
    _is_model_listed,
)
RECIPE = Rule("listed", _describe_recipes, _follows_recipe)
