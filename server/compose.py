"""From words on a command line to checked settings: the door where Hydra is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

from wardround.common.explain import first_line, nearest
from wardround.common.places import CONF
from wardround.common.recipes import ABOUT as ABOUT_RECIPE
from wardround.common.settings.tree import Settings, known_keys

AXES = ("model", "data", "num_clients", "seed")
_GROUPS = tuple(sorted(folder.name for folder in CONF.iterdir() if folder.is_dir()))
_NO_SETTINGS = ("hydra", "sweep", "experiment", ABOUT_RECIPE)
"""Nodes of Hydra's tree that are no settings."""
_BESIDE_SETTINGS = (
    "sweep",
    *(f"sweep.{axis}" for axis in AXES),
    "sweep.target_fraction",
    "sweep.arms",
)


@dataclass(frozen=True)
class Composed:
    """What an override list stands for."""

    settings: Settings
    config: DictConfig
    """Hydra's whole tree, with the `sweep` and `hydra` nodes."""


def compose(overrides: Sequence[str]) -> Composed:
    """Check and compose one run's settings.

    Raises:
        ValueError: an unknown key, group or option (with the nearest names), a value out of range, or
            settings that contradict each other.
    """
    parsed = parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ValueError(
                f"'{override.input_line}' gives several values to one run. Use `wardround sweep` for that."
            )
    config = compose_tree(overrides)
    with _hydra():
        return Composed(settings_of(config), config)


def compose_tree(overrides: Sequence[str]) -> DictConfig:
    """Hydra's whole tree, nothing in it checked as settings. Raises ValueError as `compose` does."""
    with _hydra():
        return hydra.compose(
            "config", overrides=list(overrides), return_hydra_config=True
        )


def launch(
    config: DictConfig,
    task: Callable[[DictConfig], None],
    jobs: Sequence[Sequence[str]],
) -> None:
    """Run `task` on the composed configuration of each job, through the launcher `hydra/launcher` names."""
    with _hydra():
        context = HydraContext(
            config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks()
        )
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        for result in launcher.launch([list(job) for job in jobs], initial_job_idx=0):
            result.return_value  # noqa: B018 - raises what the job raised


def settings_of(config: DictConfig) -> Settings:
    """The settings inside a composed tree. Raises ValueError as `Settings` does."""
    try:
        values: Any = OmegaConf.to_container(
            OmegaConf.masked_copy(
                config, [str(key) for key in config if key not in _NO_SETTINGS]
            ),
            resolve=True,
            throw_on_missing=True,
        )
    except OmegaConfBaseException as error:
        raise ValueError(_explained(error)) from None
    settings = Settings.from_dict(values)
    return (
        settings
        if settings.run_dir
        else replace(settings, run_dir=f"outputs/{settings.cell}")
    )


def _explained(error: Exception) -> str:
    """What is wrong with a composed tree; a value nobody gave is the usual case."""
    text = first_line(error)
    _, _, missing = text.partition("Missing mandatory value: ")
    return (
        f"{missing} is missing and has no default. Set {missing}=..."
        if missing
        else text
    )


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra, initialised on `conf/`, its complaints turned into ValueError."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(first_line(error)) from None


def parse(overrides: Iterable[str]) -> list[Override]:
    """Parse, and refuse keys and options that do not exist while their nearest names can be told."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ValueError(
                f"'{text}' is no override; write key=value, for example num_clients=8."
            )
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ValueError(
                f"'{text}' cannot be read: {first_line(error)}{_quoting(text)}"
            ) from None
        _check_key(override)
        parsed.append(override)
    return parsed


def _quoting(text: str) -> str:
    """What helps where the value is a sign that Hydra's words are not made of."""
    key, _, value = text.partition("=")
    is_sign = len(value) == 1 and not value.isalnum()
    return (
        f". Quote the value for Hydra, and the word for the shell: '{key}=\"{value}\"'"
        if is_sign
        else ""
    )


def _check_key(override: Override) -> None:
    key = override.key_or_group
    if key.split("/")[0].split(".")[0] == "hydra" or key.startswith("sweep.arms."):
        return
    known = [*known_keys(), *_GROUPS, *_BESIDE_SETTINGS]
    if key not in known:
        raise ValueError(f"unknown key '{key}'.{nearest(key, known)}")
    if key not in _GROUPS:
        return
    options = sorted(
        file.stem for file in (CONF / key).glob("*.yaml") if file.stem != "base"
    )
    chosen = (
        list(override.sweep_string_iterator())
        if override.is_sweep_override()
        else [override.value()]
    )
    for option in chosen:
        if option is not None and str(option) not in options:
            raise ValueError(
                f"unknown {key} '{option}'.{nearest(str(option), options)} There are: {', '.join(options)}."
            )
