"""The table of tasks."""

from __future__ import annotations

from collections.abc import Mapping

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


def import_model_classes() -> None:
    """Import the model classes of transformers before they are needed: it takes seconds."""
    for task in TASKS.values():
        task.model_class()
