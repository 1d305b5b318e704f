"""The endless order in which tasks are drawn; its position is one integer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from palestra.errors import TaskError
from palestra.records import Task


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
    def position(self) -> int:
        """Where the next draw looks first."""
        return self._position

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
