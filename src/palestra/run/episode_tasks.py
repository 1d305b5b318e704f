"""Which task a stored episode worked on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from palestra.config import Recipe
from palestra.errors import TaskError
from palestra.records import Task
from palestra.tasks.source import load_tasks


class EpisodeTasks:
    """Finds tasks by id in the sources of a recipe, or in one that goes before them.

    Args:
        recipe: names the tasks that the episodes had.
        source: rows to take instead, as after a change of tests or images.
        report: told of rows that cannot be used.

    Raises:
        TaskError: a source is unknown or has no row that can be used.
    """

    def __init__(
        self, recipe: Recipe, source: str | None, *, report: Callable[[str], None]
    ) -> None:
        load = partial(load_tasks, on_bad_row="skip", report=report)
        named = (source,) if source is not None else (recipe.tasks.heldout, recipe.tasks.train)
        self._sources = tuple(name for name in named if name is not None)
        self._tasks = {task.instance_id: task for name in self._sources for task in load(name)}

    def of(self, instance_id: str) -> Task:
        """The task of an id.

        Raises:
            TaskError: no source has it.
        """
        task = self.find(instance_id)
        if task is None:
            raise TaskError(
                f"{instance_id} is not among the tasks of {' and '.join(self._sources)}",
                hint="name the file that has it with --tasks",
            )
        return task

    def find(self, instance_id: str) -> Task | None:
        """The task of an id; ``None``: no source has it."""
        return self._tasks.get(instance_id)
