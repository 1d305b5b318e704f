"""Held-out evaluation inside a run: the served policy on tasks it is never trained on."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence

from palestra.config import EvaluationMode, Recipe
from palestra.errors import InfraError
from palestra.events import EventSink
from palestra.learning.evaluations import (
    EvaluatedEpisode,
    Evaluation,
    EvaluationPlan,
    EvaluationStore,
)
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.protocol import Environment, Gateway
from palestra.records import Outcome, Task
from palestra.run.watching import Watcher

_BACKGROUND_SHARE = 4


class HeldOutEvaluator:
    """Attempts every held-out task in every mode and keeps the episodes on disk.

    What is on disk already, of the same step, weights, tasks and mode, is not done again. Beside
    training it takes a quarter of the places, so that training waits little for it.

    Args:
        tasks: held out.
        environment: runs the episodes.
        gateway: samples for them.
        recipe: its ``evaluation`` section says how.
        store: keeps what was evaluated.
        watcher: is told of each mode and each episode.
        events: told of retries, and of each mode that is on disk.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        environment: Environment,
        gateway: Gateway,
        *,
        recipe: Recipe,
        store: EvaluationStore,
        watcher: Watcher,
        events: EventSink,
    ) -> None:
        self._tasks = tasks
        self._environment = environment
        self._gateway = gateway
        self._recipe = recipe
        self._store = store
        self._watcher = watcher
        self._events = events
        places = recipe.environment.concurrency
        self._slots = asyncio.Semaphore(places)
        self._background_slots = asyncio.Semaphore(max(1, places // _BACKGROUND_SHARE))

    async def evaluate(
        self, *, step: int, version: int, background: bool = False
    ) -> Mapping[str, float]:
        """Attempt all tasks under the served weights.

        Args:
            step: after which they are evaluated.
            version: of the weights that are served now.
            background: training goes on meanwhile; which weights sampled is told by
                ``oldest_version`` and ``newest_version`` and stands at every id on disk.

        Returns:
            Below ``sampled/`` and ``greedy/``: ``solve_rate`` and ``pass@K``, their 95 %
            intervals (``solve_rate_low``, ``solve_rate_high``), ``episodes`` that were graded,
            shares of outcomes, and the versions that sampled. A value that nothing is known of
            is left out.

        Raises:
            InfraError: more than ``rollouts.max_infra_share`` of a mode's episodes failed.
            UsageError: the user must mend something before any episode can run.
        """
        metrics: dict[str, float] = {}
        for mode in self._recipe.evaluation.modes:
            plan = self._plan(mode, step, version)
            evaluation = await asyncio.to_thread(self._store.find, plan)
            if evaluation is None:
                evaluation = await self._carry_out(plan, background)
                await asyncio.to_thread(self._store.write, evaluation)
                self._events.emit("evaluation.stored", step=step, mode=mode)
            metrics |= {f"{mode}/{name}": value for name, value in evaluation.metrics().items()}
        return metrics

    def _plan(self, mode: EvaluationMode, step: int, version: int) -> EvaluationPlan:
        section = self._recipe.evaluation
        sampled = mode == "sampled"
        temperature = section.temperature or self._recipe.sampling.temperature
        return EvaluationPlan(
            step=step,
            version=version,
            mode=mode,
            temperature=temperature if sampled else 0.0,
            attempts=section.attempts if sampled else 1,
            tasks=_digest(self._tasks),
        )

    async def _carry_out(self, plan: EvaluationPlan, background: bool) -> Evaluation:
        collector = RolloutCollector(
            self._environment,
            self._gateway,
            # Not validated: 0 (greedy) is fine here and wrong for training.
            sampling=self._recipe.sampling.model_copy(update={"temperature": plan.temperature}),
            infra_retries=self._recipe.rollouts.infra_retries,
            seed=self._recipe.seed,
            events=self._events,
        )
        slots = self._background_slots if background else self._slots
        self._watcher.on_evaluation_begin(plan, len(self._tasks) * plan.attempts)
        began_s = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                running = [
                    group.create_task(self._attempt(collector, slots, task, plan, number))
                    for task in self._tasks
                    for number in range(plan.attempts)
                ]
        except BaseExceptionGroup as errors:
            # The first is enough: it says what the user must mend.
            raise errors.exceptions[0] from None
        evaluation = Evaluation(
            plan=plan,
            duration_s=time.monotonic() - began_s,
            episodes=tuple(task.result() for task in running),
            background=background,
        )
        self._check_infra_share(evaluation)
        return evaluation

    async def _attempt(
        self,
        collector: RolloutCollector,
        slots: asyncio.Semaphore,
        task: Task,
        plan: EvaluationPlan,
        number: int,
    ) -> EvaluatedEpisode:
        name = f"eval-{plan.step}-{plan.mode}-{task.instance_id}-{number}"
        async with slots:
            rollout = await collector.collect(task, name)
        self._watcher.on_evaluation_episode(rollout)
        return EvaluatedEpisode(
            attempt=number,
            statement=task.problem_statement,
            kind=str(task.row.get("family") or task.repo),
            rollout=rollout,
        )

    def _check_infra_share(self, evaluation: Evaluation) -> None:
        episodes = [attempt.rollout.episode for attempt in evaluation.episodes]
        failed = [e for e in episodes if e.outcome is Outcome.INFRA_ERROR]
        allowed = self._recipe.rollouts.max_infra_share
        if len(failed) <= allowed * len(episodes):
            return
        raise InfraError(
            f"{len(failed)} of {len(episodes)} held-out episodes failed for reasons that are not "
            f"the policy's, more than rollouts.max_infra_share = {allowed:g} allows; the last: "
            f"{failed[-1].instance_id}: {failed[-1].error or failed[-1].exit_status}"
        )


def _digest(tasks: Sequence[Task]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for task in tasks:
        digest.update(f"{task.instance_id}\0{task.problem_statement}\0".encode())
    return digest.hexdigest()
