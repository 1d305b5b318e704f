"""Held-out evaluation inside a run: the served policy on tasks it is never trained on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from palestra.config import Recipe
from palestra.learning.metrics import wilson_interval
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.protocol import Environment, Gateway
from palestra.records import Rollout, Task
from palestra.run.watching import Watcher


class HeldOutEvaluator:
    """Attempts every held-out task and reports the solve rate with its 95 % interval.

    Args:
        tasks: held out.
        environment: runs the episodes.
        gateway: samples for them.
        recipe: its ``evaluation`` section says how often and how.
        watcher: is told when it begins.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        environment: Environment,
        gateway: Gateway,
        recipe: Recipe,
        watcher: Watcher,
    ) -> None:
        self._tasks = tasks
        self._section = recipe.evaluation
        self._watcher = watcher
        self._slots = asyncio.Semaphore(recipe.environment.concurrency)
        self._collector = RolloutCollector(
            environment,
            gateway,
            # Not validated: 0 (greedy) is fine here and wrong for training.
            sampling=recipe.sampling.model_copy(
                update={"temperature": recipe.evaluation.temperature}
            ),
            infra_retries=recipe.rollouts.infra_retries,
            seed=recipe.seed,
        )

    async def evaluate(self, *, step: int, version: int) -> Mapping[str, float]:
        """Attempt all tasks under the served weights.

        Returns:
            ``solve_rate``, its interval ``solve_rate_low`` and ``solve_rate_high``, and
            ``episodes`` that were graded; the first three are left out if none was.
        """
        attempts = self._section.attempts
        self._watcher.say(f"evaluating {len(self._tasks)} held-out tasks")
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(self._attempt(task, f"eval-{step}-{task.instance_id}-{number}"))
                for task in self._tasks
                for number in range(attempts)
            ]
        rewards = [r for r in (task.result().reward for task in running) if r is not None]
        metrics = {"episodes": float(len(rewards))}
        interval = wilson_interval(sum(r == 1.0 for r in rewards), len(rewards))
        if interval is not None:
            metrics["solve_rate"] = sum(r == 1.0 for r in rewards) / len(rewards)
            metrics["solve_rate_low"] = interval.low
            metrics["solve_rate_high"] = interval.high
        return metrics

    async def _attempt(self, task: Task, rollout_id: str) -> Rollout:
        async with self._slots:
            return await self._collector.collect(task, rollout_id)
