"""The plan of a sweep: its cells (models x data sets x arms x K x seeds) and their shared
settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from omegaconf import DictConfig

from wardround.common.explain import nearest
from wardround.common.places import from_home
from wardround.server.compose import AXES, compose_tree, parse

_SET_BY_SWEEP = ("num_rounds", "evaluation.target_accuracy", "evaluation.patience")


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, from the command line and `conf/`."""

    run_dir: str
    target_fraction: float
    cells: list[list[str]]
    """Overrides of each cell, without `run_dir`; K = 1 first."""
    config: DictConfig
    """Hydra's tree of the settings that the cells share, for the launcher."""


@dataclass(frozen=True)
class _SortedOverrides:
    """Overrides, sorted by their purpose."""

    axes: dict[str, list[str]]
    shared: dict[str, str]
    """Overrides of every cell, by key."""
    for_hydra: list[str]
    run_dir: str


def compose_sweep(overrides: Sequence[str]) -> SweepPlan:
    """Plan a sweep.

    The axes are in the `sweep` node. The overrides of an arm (`sweep.arms`) take precedence over
    it, and those of the command line (`model=bert,albert num_clients=1,4`) over both. `arm=a,b`
    chooses arms.

    Raises:
        ValueError: as `compose` does, or an axis is empty, or a key that is not an axis has several
            values, or an override would undo a setting of an arm.
    """
    words = _sort(overrides)
    config = compose_tree([*words.for_hydra, *words.shared.values()])
    arms = _arms(words, config.sweep.arms)
    experiment = config.hydra.runtime.choices.get("experiment")
    return SweepPlan(
        run_dir=words.run_dir or f"outputs/sweep-{experiment or 'custom'}",
        target_fraction=float(config.sweep.target_fraction),
        cells=_cells(words, arms, config.sweep),
        config=config,
    )


def _sort(overrides: Sequence[str]) -> _SortedOverrides:
    axes: dict[str, list[str]] = {}
    shared: dict[str, str] = {}
    for_hydra: list[str] = []
    run_dir = ""
    for override in parse(overrides):
        key = override.key_or_group
        line = str(override.input_line)
        if key in (*AXES, "arm"):
            if override.is_sweep_override():
                axes[key] = list(override.sweep_string_iterator())
            else:
                axes[key] = [str(override.value())]
        elif override.is_sweep_override():
            raise ValueError(
                f"'{line}' gives several values to '{key}'; only the axes of a sweep can have "
                f"several: "
                f"{', '.join(AXES)}."
            )
        elif key in _SET_BY_SWEEP:
            raise ValueError(
                f"'{line}' is for one run; a sweep takes its rounds from data.budget_rounds "
                "and data.second_threshold_rounds, and its target from sweep.target_fraction."
            )
        elif key == "run_dir":
            run_dir = from_home(str(override.value()))
        elif key.startswith("hydra"):
            for_hydra.append(line)
        else:
            shared[key] = line
    return _SortedOverrides(axes, shared, for_hydra, run_dir)


def _arms(words: _SortedOverrides, written: DictConfig) -> dict[str, _SortedOverrides]:
    """Return the chosen arms by name; without arms, one with an empty name and no overrides."""
    arms = {str(name): _sort(list(map(str, arm))) for name, arm in written.items()}
    chosen = words.axes.get("arm", list(arms))
    for name in chosen:
        if name not in arms:
            known = " This sweep has none (sweep.arms)."
            if arms:
                known = f" There are: {', '.join(arms)}."
            raise ValueError(f"unknown arm '{name}'.{nearest(name, arms)}{known}")
        arm = arms[name]
        if arm.for_hydra or arm.run_dir or "arm" in arm.axes:
            raise ValueError(
                f"sweep.arms.{name} sets hydra, run_dir or arm. An arm can set only settings and "
                f"axes."
            )
        undone = []
        for key in arm.shared.keys() & words.shared.keys():
            undone.append((words.shared[key], arm.shared[key]))
        # The arm's other settings are for its own model and data.
        for axis in ("model", "data"):
            ours = ",".join(arm.axes.get(axis, ()))
            given = ",".join(words.axes.get(axis, ()))
            if ours and given not in ("", ours):
                undone.append((f"{axis}={given}", f"{axis}={ours}"))
        for given, own in undone:
            raise ValueError(
                f"'{given}' would undo '{own}', which arm '{name}' sets. Leave it out, or choose "
                f"other "
                "arms with arm=..."
            )
    return {name: arms[name] for name in chosen} or {"": _sort([])}


def _cells(
    words: _SortedOverrides, arms: dict[str, _SortedOverrides], defaults: Any
) -> list[list[str]]:
    """Return the overrides of each cell, sorted by K, then as arms and axes are written.

    So a baseline comes before the cells that are compared with it.
    """
    cells: list[tuple[int, list[str]]] = []
    usual = {axis: list(map(str, defaults[axis])) for axis in AXES}
    for name, arm in arms.items():
        axes = usual | arm.axes | words.axes
        for axis in AXES:
            if not axes[axis]:
                raise ValueError(
                    f"sweep.{axis} is empty; a sweep needs at least one value of each axis."
                )
        shared = list(words.shared.values())
        if name:
            shared += [*arm.shared.values(), f"arm={name}"]
        for values in product(*(axes[axis] for axis in AXES)):
            named = dict(zip(AXES, values, strict=True))
            own = [f"{axis}={value}" for axis, value in named.items()]
            text = named["num_clients"]
            num_clients = int(text) if text.isdigit() else 0
            cells.append((num_clients, [*shared, *own]))
    cells.sort(key=lambda cell: cell[0])
    return [overrides for _, overrides in cells]
