"""The endless order in which tasks are drawn; its position is one integer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from palestra.errors import TaskError
from palestra.records import Task

Draws = tuple[tuple[int, str], ...]
"""Position and instance id of each group that is out."""
Tries = tuple[tuple[str, float, float], ...]
"""A name, how many attempts under it solved their task, and how many there were."""


class Order(Protocol):
    """Which task comes next. What a checkpoint keeps of it are its properties."""

    @property
    def position(self) -> int:
        """Of the next draw."""
        ...

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Ids that are not drawn any more, sorted."""
        ...

    @property
    def draws(self) -> Draws:
        """The groups that are out, where the position does not tell their tasks."""
        ...

    @property
    def tries(self) -> Tries:
        """What the order has learnt of its tasks."""
        ...

    def draw(self) -> tuple[int, Task]:
        """Return the next task and its position. Raises TaskError where there is none."""
        ...

    def coming(self, num_tasks: int) -> tuple[Task, ...]:
        """The tasks of the next draws, as far as is known now."""
        ...

    def at(self, position: int) -> Task:
        """The task of a position that was drawn."""
        ...

    def quarantine(self, instance_id: str) -> None:
        """Never draw this task again."""
        ...

    def note(self, position: int, instance_id: str, *, solved: int, attempts: int) -> None:
        """A group came back: so many of its attempts have a reward, so many solved the task."""
        ...


class TaskOrder:
    """Draws every task once per epoch, epoch after epoch, shuffled anew in each.

    The task at a position depends on the seed and the position only, so a run that
    goes on from a position draws what it would have drawn.

    Args:
        tasks: at least one; ids must be unique.
        seed: of the shuffles.
        shuffle: whether epochs are shuffled at all.
        position: of the next draw.
        quarantined: ids that are never drawn.

    Raises:
        TaskError: there is no task, or two have the same id.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        seed: int,
        shuffle: bool = True,
        position: int = 0,
        quarantined: Sequence[str] = (),
    ) -> None:
        if not tasks:
            raise TaskError("there is no task to train on")
        ids = {task.instance_id for task in tasks}
        if len(ids) < len(tasks):
            raise TaskError(f"{len(tasks)} tasks have only {len(ids)} different instance_ids")
        self._tasks = tuple(tasks)
        self._seed = seed
        self._shuffle = shuffle
        self._position = position
        self._quarantined = set(quarantined)
        self._epoch = -1
        self._order: list[int] = []

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in quarantine or not."""
        return self._tasks

    @property
    def position(self) -> int:
        """Where the next draw looks first."""
        return self._position

    @property
    def draws(self) -> Draws:
        """Nothing: a position tells its task."""
        return ()

    @property
    def tries(self) -> Tries:
        """Nothing: this order does not learn."""
        return ()

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Ids that are not drawn any more, sorted."""
        return tuple(sorted(self._quarantined))

    def draw(self) -> tuple[int, Task]:
        """Return the next task that is not in quarantine, and its position.

        Raises:
            TaskError: all tasks are in quarantine.
        """
        # Any window of two epochs holds at least one of them whole.
        for _ in range(2 * len(self._tasks)):
            position, task = self._position, self.at(self._position)
            self._position += 1
            if task.instance_id not in self._quarantined:
                return position, task
        raise TaskError(
            f"all {len(self._tasks)} tasks are in quarantine: their tests do not repeat"
        )

    def skip(self) -> None:
        """Go on to the next position."""
        self._position += 1

    def note(self, position: int, instance_id: str, *, solved: int, attempts: int) -> None:
        """Results change nothing here."""

    def coming(self, num_tasks: int) -> tuple[Task, ...]:
        """The tasks of the next draws, as far as is known now; at most all there are."""
        positions = range(self._position, self._position + min(num_tasks, len(self._tasks)))
        tasks = map(self.at, positions)
        return tuple(task for task in tasks if task.instance_id not in self._quarantined)

    def at(self, position: int) -> Task:
        """The task at a position, whether in quarantine or not."""
        epoch, index = divmod(position, len(self._tasks))
        if epoch != self._epoch:
            self._order = list(range(len(self._tasks)))
            if self._shuffle:
                random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._tasks[self._order[index]]

    def quarantine(self, instance_id: str) -> None:
        """Never draw this task again."""
        self._quarantined.add(instance_id)
