"""Which cells a sweep has: models x data sets x arms x K x seeds, and what all cells share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from omegaconf import DictConfig

from wardround.common.explain import nearest
from wardround.server.compose import AXES, compose_tree, parse

_SET_BY_SWEEP = ("num_rounds", "evaluation.target_accuracy", "evaluation.patience")


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as the command line and `conf/` describe it."""

    run_dir: str
    target_fraction: float
    cells: list[list[str]]
    """Overrides of each cell, without `run_dir`; K = 1 first."""
    config: DictConfig
    """Hydra's tree of what the cells share, for the launcher."""


@dataclass(frozen=True)
class _Words:
    """An override list, sorted by what each word is for."""

    axes: dict[str, list[str]]
    shared: dict[str, str]
    """Override by key, for every cell."""
    for_hydra: list[str]
    run_dir: str


def compose_sweep(overrides: Sequence[str]) -> SweepPlan:
    """Plan a sweep.

    Axes come from the `sweep` node; an arm's own words (`sweep.arms`) go before it, and
    `model=bert,albert num_clients=1,4` on the command line before both. `arm=a,b` chooses among the arms.

    Raises:
        ValueError: as `compose` does, or an axis is empty, or values are given to a key that is no axis, or
            a word takes away what an arm is about.
    """
    words = _sort(overrides)
    config = compose_tree([*words.for_hydra, *words.shared.values()])
    experiment = config.hydra.runtime.choices.get("experiment")
    return SweepPlan(
        run_dir=words.run_dir or f"outputs/sweep-{experiment or 'custom'}",
        target_fraction=float(config.sweep.target_fraction),
        cells=_cells(words, _arms(words, config.sweep.arms), config.sweep),
        config=config,
    )


def _sort(overrides: Sequence[str]) -> _Words:
    words = _Words({}, {}, [], "")
    run_dir = ""
    for override in parse(overrides):
        key, line = override.key_or_group, str(override.input_line)
        if key in (*AXES, "arm"):
            several = override.is_sweep_override()
            words.axes[key] = (
                list(override.sweep_string_iterator())
                if several
                else [str(override.value())]
            )
        elif override.is_sweep_override():
            raise ValueError(
                f"'{line}' sweeps over '{key}'; the axes of a sweep are {', '.join(AXES)}."
            )
        elif key in _SET_BY_SWEEP:
            raise ValueError(
                f"'{line}' is for one run; a sweep takes its rounds from data.budget_rounds "
                "and data.second_threshold_rounds, and its target from sweep.target_fraction."
            )
        elif key == "run_dir":
            run_dir = str(override.value())
        elif key.startswith("hydra"):
            words.for_hydra.append(line)
        else:
            words.shared[key] = line
    return _Words(words.axes, words.shared, words.for_hydra, run_dir)


def _arms(words: _Words, written: DictConfig) -> dict[str, _Words]:
    """The arms that take part, by name; one without a name and without words where there are none."""
    arms = {
        str(name): _sort([str(word) for word in arm]) for name, arm in written.items()
    }
    chosen = words.axes.get("arm", list(arms))
    for name in chosen:
        if name not in arms:
            known = (
                f" There are: {', '.join(arms)}."
                if arms
                else " This sweep has none (sweep.arms)."
            )
            raise ValueError(f"unknown arm '{name}'.{nearest(name, arms)}{known}")
        arm = arms[name]
        if arm.for_hydra or arm.run_dir or "arm" in arm.axes:
            raise ValueError(
                f"sweep.arms.{name} sets hydra, run_dir or arm; an arm sets settings and axes."
            )
        undone = [
            (words.shared[key], arm.shared[key])
            for key in arm.shared.keys() & words.shared.keys()
        ]
        for axis in ("model", "data"):  # other settings of the arm are about its own
            ours, given = (",".join(side.axes.get(axis, ())) for side in (arm, words))
            undone += (
                [(f"{axis}={given}", f"{axis}={ours}")]
                if ours and given not in ("", ours)
                else []
            )
        for given, own in undone:
            raise ValueError(
                f"'{given}' would undo '{own}', which arm '{name}' is about. Leave it out, or choose other "
                "arms with arm=..."
            )
    return {name: arms[name] for name in chosen} or {"": _sort([])}


def _cells(words: _Words, arms: dict[str, _Words], defaults: Any) -> list[list[str]]:
    """Overrides of each cell, by K, then as arms and axes were written: a baseline before what it judges."""
    cells: list[tuple[int, list[str]]] = []
    for name, arm in arms.items():
        axes = (
            {axis: [str(value) for value in defaults[axis]] for axis in AXES}
            | arm.axes
            | words.axes
        )
        for axis in AXES:
            if not axes[axis]:
                raise ValueError(
                    f"sweep.{axis} is empty; a sweep needs at least one value of each axis."
                )
        own = [*arm.shared.values(), f"arm={name}"] if name else []
        for values in product(*(axes[axis] for axis in AXES)):
            named = dict(zip(AXES, values, strict=True))
            text = named["num_clients"]
            overrides = [
                *words.shared.values(),
                *own,
                *(f"{axis}={value}" for axis, value in named.items()),
            ]
            cells.append((int(text) if text.isdigit() else 0, overrides))
    return [overrides for _, overrides in sorted(cells, key=lambda cell: cell[0])]
