"""Turns the words of a command line into checked settings. Only this file imports Hydra."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wardround.common.explain import (
    first_line,
    nearest,
    nearest_in_words,
    similar,
)
from wardround.common.places import CONF, from_home
from wardround.common.recipes import ABOUT as ABOUT_RECIPE
from wardround.common.settings.tree import Settings, known_keys
from wardround.server.typed_words import as_typed, hydra_text

AXES = ("model", "data", "num_clients", "seed")
_FOLDERS = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
_GROUPS = tuple(sorted(_FOLDERS))
_NO_SETTINGS = ("hydra", "sweep", "experiment", ABOUT_RECIPE)
"""Nodes of Hydra's tree that are not settings."""
_BESIDE_SETTINGS = (
    "sweep",
    *(f"sweep.{axis}" for axis in AXES),
    "sweep.target_fraction",
    "sweep.arms",
)

_OTHER_NAMES = {
    "batch": ("train.batch_size",),
    "batch_size": ("train.batch_size",),
    "clients": ("num_clients",),
    "dataset": ("data",),
    "epochs": ("train.local_epochs",),
    "gpu": ("device",),
    "lr": ("train.learning_rate",),
    "max_len": ("train.max_length",),
    "mu": ("train.proximal_mu",),
    "output_dir": ("run_dir",),
    "rounds": ("num_rounds",),
    "sites": ("num_clients",),
    "weight_decay": ("train.weight_decay",),
}
"""Settings by the names that other programs have for them."""


@dataclass(frozen=True)
class Composed:
    """The settings that a list of overrides makes."""

    settings: Settings
    config: DictConfig
    """Hydra's whole tree, with the `sweep` and `hydra` nodes."""


def compose(overrides: Sequence[str]) -> Composed:
    """Compose and check the settings of one run.

    Raises:
        ValueError: a key, group or option is unknown (with the nearest names), a value is out of
            range, or settings contradict each other.
    """
    pairs = zip(overrides, parse(overrides), strict=True)
    for word, override in pairs:
        if override.is_sweep_override():
            raise ValueError(
                f"'{word}' gives several values to one run. Use `wardround sweep` for that, or "
                f"write a list as [a, b], or a text that has a comma as {_in_quotes(word)}"
            )
    config = compose_tree(overrides)
    with _hydra():
        return Composed(settings_of(config), config)


def compose_tree(overrides: Sequence[str]) -> DictConfig:
    """Return Hydra's whole tree, with unchecked settings. Raises ValueError as `compose` does."""
    with _hydra():
        return hydra.compose(
            "config", overrides=as_typed(overrides), return_hydra_config=True
        )


def launch(
    config: DictConfig,
    task: Callable[[DictConfig], None],
    jobs: Sequence[Sequence[str]],
) -> None:
    """Run `task` on the composed configuration of each job, by the launcher of `hydra/launcher`."""
    with _hydra():
        context = HydraContext(
            config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks()
        )
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        for result in launcher.launch(
            [as_typed(job) for job in jobs], initial_job_idx=0
        ):
            result.return_value  # noqa: B018 - raises the error of the job


def settings_of(config: DictConfig) -> Settings:
    """Return the settings inside a composed tree. Raises ValueError as `Settings` does."""
    keys = [str(key) for key in config if key not in _NO_SETTINGS]
    try:
        own = OmegaConf.masked_copy(config, keys)
        values: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(_explained(error)) from None
    settings = _from_home(Settings.from_dict(values))
    if settings.run_dir:
        return settings
    return replace(settings, run_dir=f"outputs/{settings.cell}")


def _from_home(settings: Settings) -> Settings:
    """Return the settings with ~ replaced in every path. Raises ValueError as `from_home` does."""
    data = settings.data
    model_name = from_home(settings.model.name)
    model = replace(settings.model, name=model_name)
    paths: dict[str, Any] = {}
    for key in ("path", "test_path", "hub_name", "token_cache"):
        path = getattr(data, key)
        if path is not None:
            paths[key] = from_home(path)
    return replace(
        settings,
        run_dir=from_home(settings.run_dir),
        model=model,
        data=replace(data, **paths),
    )


def _explained(error: Exception) -> str:
    """Return the message for a tree that cannot be resolved; usually a value is missing."""
    text = first_line(error)
    _, _, missing = text.partition("Missing mandatory value: ")
    if not missing:
        return text
    return f"{missing} is missing and has no default. Set {missing}=..."


@contextmanager
def _hydra() -> Iterator[None]:
    """Initialise Hydra on `conf/`, and turn its errors into ValueError."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(first_line(error)) from None


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse the words, and check that their keys and options exist.

    Raises:
        ValueError: a word cannot be parsed, or has an unknown key or option; with the nearest
            names.
    """
    parser = OverridesParser.create()
    parsed = []
    pairs = zip(overrides, as_typed(overrides), strict=True)
    for text, word in pairs:
        if "=" not in text and not text.startswith("~"):
            raise ValueError(
                f"'{text}' has no value. Write key=value without spaces, for example "
                "num_clients=8."
            )
        try:
            override = parser.parse_override(word)
        except HydraException:
            raise ValueError(f"'{text}' cannot be read. {_step(text)}") from None
        _check_key(override)
        parsed.append(override)
    return parsed


def _step(text: str) -> str:
    """Return the next step for a word that Hydra cannot parse."""
    key, _, value = text.partition("=")
    if key != key.strip() or value != value.strip():
        return f"Write no spaces around =: {key.strip()}={value.strip()}"
    if value.startswith(("[", "{")):
        return "Close every bracket, and separate values with commas: [a, b]."
    return f"Quote the value for Hydra, and the word for the shell: {_in_quotes(text)}"


def _in_quotes(word: str) -> str:
    """Return the word with its value as one text, ready for a shell."""
    key, _, value = word.partition("=")
    return shlex.quote(f"{key}={hydra_text(value)}")


def _nearest_keys(key: str, known: Sequence[str]) -> str:
    """Return the next step for an unknown key: what others call a setting, and similar names."""
    _, _, last = key.rpartition(".")
    other_name = last.lower()
    usual = _OTHER_NAMES.get(other_name, ())
    found = [*usual, *similar(key, known)]
    words = nearest_in_words(list(dict.fromkeys(found)))
    return words or " See: wardround simulate --help, and docs/settings.md."


def _check_key(override: Override) -> None:
    """Raise ValueError if the key, or the option of a group, does not exist."""
    key = override.key_or_group
    group, _, _ = key.partition("/")
    first, _, _ = group.partition(".")
    if first == "hydra" or key.startswith("sweep.arms."):
        return
    known = [*known_keys(), *_GROUPS, *_BESIDE_SETTINGS]
    if key not in known:
        raise ValueError(f"unknown key '{key}'.{_nearest_keys(key, known)}")
    if key not in _GROUPS:
        return
    files = (CONF / key).glob("*.yaml")
    stems = {file.stem for file in files}
    options = sorted(stems - {"base"})
    chosen: list[object]
    if override.is_sweep_override():
        chosen = list(override.sweep_string_iterator())
    else:
        chosen = [override.value()]
    for option in chosen:
        if option is not None and str(option) not in options:
            raise ValueError(
                f"unknown {key} '{option}'.{nearest(str(option), options)} There are: "
                f"{', '.join(options)}."
            )
