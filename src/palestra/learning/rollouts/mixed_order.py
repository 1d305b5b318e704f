"""An order of tasks that prefers those whose groups are likely to be mixed."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

from palestra.errors import TaskError
from palestra.learning.rollouts.task_order import Draws, TaskOrder, Tries
from palestra.records import Task
from palestra.tasks.difficulty import NUM_LEVELS, PRIOR_ATTEMPTS, PRIOR_SOLVE_RATES, level_of

EXPLORED_SHARE = 0.25
"""Of the draws, those that follow the uniform order whatever is known."""
TASK_MEMORY = 0.5
"""What former tries of a task count at each new one, since the policy changes."""
LEVEL_MEMORY = 0.95
"""What former tries of a level count at each new one of any of its tasks."""
_LEVEL_PRIOR_ATTEMPTS = 16.0
_MAX_TRIES = 32


class MixedOrder:
    """Draws tasks by how likely their next group holds both successes and failures.

    The share of attempts that solve a task is a Beta variable. Its prior has the mean of the
    task's level, itself a thought (0.9 to 0.1 for levels 1 to 5) mixed with what the run saw of
    that level, and weighs four attempts; the tries of the task are added to it, older ones
    fading. A group of ``n`` attempts is mixed with the probability 1 - E[p^n] - E[(1-p)^n], and
    tasks are drawn in proportion to it. One draw in four follows the uniform order.

    What is drawn depends on the seed, the position and the tries that were noted, and all of
    it is in the state, so a run that goes on draws what it would have drawn. A task whose group
    is out is not drawn again while there are others.

    Args:
        uniform: the order that is kept to one time in four; holds position and quarantine.
        group_size: attempts of one group.
        seed: of the draws.
        draws: position → instance id of the groups that are out (from a former state).
        tries: what was seen (from a former state).
    """

    def __init__(
        self,
        uniform: TaskOrder,
        *,
        group_size: int,
        seed: int,
        draws: Draws = (),
        tries: Tries = (),
    ) -> None:
        self._uniform = uniform
        self._group_size = group_size
        self._seed = seed
        self._tasks = {task.instance_id: task for task in uniform.tasks}
        self._levels = {task.instance_id: level_of(task.row) for task in uniform.tasks}
        self._out = {position: name for position, name in draws if name in self._tasks}
        self._tries = {name: (solved, attempts) for name, solved, attempts in tries}
        self._sums: list[float] | None = None

    @property
    def position(self) -> int:
        """Of the next draw."""
        return self._uniform.position

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Ids that are not drawn any more, sorted."""
        return self._uniform.quarantined

    @property
    def draws(self) -> Draws:
        """Position and instance id of each group that is out."""
        return tuple(sorted(self._out.items()))

    @property
    def tries(self) -> Tries:
        """Of each task, and of each level under ``level N``: what was solved, what was tried."""
        return tuple((name, *tried) for name, tried in sorted(self._tries.items()))

    def draw(self) -> tuple[int, Task]:
        """Return the next task and its position.

        Raises:
            TaskError: all tasks are in quarantine.
        """
        position = self.position
        task = self._choose(position, set(self._out.values()))
        self._uniform.skip()
        self._out[position] = task.instance_id
        return position, task

    def coming(self, num_tasks: int) -> tuple[Task, ...]:
        """The tasks of the next draws, as far as is known now; at most all there are."""
        out = set(self._out.values())
        found: list[Task] = []
        for offset in range(min(num_tasks, len(self._tasks))):
            try:
                task = self._choose(self.position + offset, out)
            except TaskError:
                break
            out.add(task.instance_id)
            found.append(task)
        return tuple(found)

    def at(self, position: int) -> Task:
        """The task of a group that is out; elsewhere the one of the uniform order."""
        name = self._out.get(position)
        return self._uniform.at(position) if name is None else self._tasks[name]

    def quarantine(self, instance_id: str) -> None:
        """Never draw this task again."""
        self._uniform.quarantine(instance_id)

    def note(self, position: int, instance_id: str, *, solved: int, attempts: int) -> None:
        """A group came back: so many of its attempts have a reward, so many solved the task."""
        self._out.pop(position, None)
        if attempts == 0 or instance_id not in self._tasks:
            return
        level = _level_key(self._levels[instance_id])
        for key, memory in ((instance_id, TASK_MEMORY), (level, LEVEL_MEMORY)):
            before = self._tries.get(key, (0.0, 0.0))
            self._tries[key] = (before[0] * memory + solved, before[1] * memory + attempts)
        self._sums = None

    def chance(self, instance_id: str) -> float:
        """How likely the next group of a task is mixed, as far as is known."""
        rate = self._level_rate(self._levels[instance_id])
        solved, attempts = self._tries.get(instance_id, (0.0, 0.0))
        a = PRIOR_ATTEMPTS * rate + solved
        b = PRIOR_ATTEMPTS * (1 - rate) + attempts - solved
        all_solved = all_failed = 1.0
        for n in range(self._group_size):
            all_solved *= (a + n) / (a + b + n)
            all_failed *= (b + n) / (a + b + n)
        return max(0.0, 1 - all_solved - all_failed)

    def _level_rate(self, level: int) -> float:
        solved, attempts = self._tries.get(_level_key(level), (0.0, 0.0))
        thought = PRIOR_SOLVE_RATES[level - 1] * _LEVEL_PRIOR_ATTEMPTS
        return (thought + solved) / (_LEVEL_PRIOR_ATTEMPTS + attempts)

    def _choose(self, position: int, out: Collection[str]) -> Task:
        """The task for a position; depends on nothing but what is in the state."""
        draw = random.Random(f"{self._seed}/mixed/{position}").random
        left = set(self._tasks) - set(self.quarantined)
        if not left:
            raise TaskError(
                f"all {len(self._tasks)} tasks are in quarantine: their tests do not repeat"
            )
        left = left - set(out) or left
        explored = self._uniform.at(position)
        if draw() < EXPLORED_SHARE and explored.instance_id in left:
            return explored
        tasks = self._uniform.tasks
        sums = self._weights()
        for _ in range(_MAX_TRIES):
            index = min(bisect_right(sums, draw() * sums[-1]), len(tasks) - 1)
            if tasks[index].instance_id in left:
                return tasks[index]
        # Nearly all that is likely is out or in quarantine.
        rest = [task for task in tasks if task.instance_id in left]
        return rest[int(draw() * len(rest))]

    def _weights(self) -> Sequence[float]:
        """Running sums of the chances, in the order of the tasks."""
        if self._sums is None:
            chances = (self.chance(task.instance_id) for task in self._uniform.tasks)
            self._sums = list(accumulate(chances))
        return self._sums


def _level_key(level: int) -> str:
    assert 1 <= level <= NUM_LEVELS, "levels are cut to their range where they are read"
    return f"level {level}"
