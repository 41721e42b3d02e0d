"""The table of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.common.tasks.task import Task

TASKS: Mapping[str, Task] = {task.name: task for task in (LABEL,)}
"""Every task by its name."""


def task_of(settings: Settings | None) -> Task:
    """Return the task that a run trains for.

    No setting names a task yet, so that every run has the only one. A model folder without
    settings is a classifier.
    """
    (task,) = TASKS.values()
    return task


def check_ranges(facts: Mapping[str, Any]) -> None:
    """Raise ValueError if a fact, or one of a list, is outside of the range of its name.

    An interval of a fact has the name of the fact and `_interval`.
    """
    ranges = {
        name: bounds for task in TASKS.values() for name, bounds in task.ranges.items()
    }
    for name, value in facts.items():
        low, high = ranges.get(name.removesuffix("_interval"), (-inf, inf))
        values = value if isinstance(value, list | tuple) else [value]
        if not all(one is None or low <= one <= high for one in values):
            raise ValueError(f"{name} is {value}, not within {low} and {high}")


def import_model_classes() -> None:
    """Import the model classes of transformers before they are needed: it takes seconds."""
    for task in TASKS.values():
        task.model_class()
