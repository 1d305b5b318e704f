"""The warm start: demonstrations as real episodes, then supervised steps on their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from palestra.addresses import gateway_host, named_url
from palestra.config import Recipe
from palestra.errors import ConfigError, InfraError
from palestra.events import EventSink
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.learning.rollouts.protocol import Environment
from palestra.learning.rollouts.store import RolloutStore
from palestra.learning.training import Trainer, warm_start
from palestra.policy.engines.scripted import ScriptedEngine
from palestra.records import Outcome, Task, TokenPath, Trace
from palestra.run.demonstrations import Demonstration, demonstration_of, teacher
from palestra.run.policy import serving
from palestra.run.watching import Watcher


class Warmup:
    """Makes demonstrations with a scripted policy and fits the trainer to them.

    Args:
        recipe: its ``warmstart`` section says how long and on which tasks.
        tasks: to demonstrate.
        tokenizer: of the model.
        environment: runs the episodes.
        watcher: is told of each step.
        events: told of each step (``warmstart``).
    """

    def __init__(
        self,
        recipe: Recipe,
        tasks: Sequence[Task],
        tokenizer: Any,
        environment: Environment,
        watcher: Watcher,
        events: EventSink,
    ) -> None:
        self._recipe = recipe
        self._tasks = tasks
        self._tokenizer = tokenizer
        self._environment = environment
        self._watcher = watcher
        self._events = events

    async def run(self, trainer: Trainer) -> None:
        """Do all supervised steps; none if the recipe has none.

        Raises:
            InfraError: no demonstration solved its task.
            ConfigError: the earlier run to learn from has nothing to learn.
        """
        if not self._recipe.warmstart.steps:
            return
        paths = await asyncio.to_thread(self._solved)
        if self._tasks:
            self._watcher.say(f"demonstrating {len(self._tasks)} tasks")
            paths += await self._demonstrate()
        self._watcher.say(f"warming up on {len(paths)} demonstrations")
        steps = warm_start(trainer, paths, self._recipe.warmstart, self._recipe.seed)
        number = 0
        while (metrics := await asyncio.to_thread(_next, steps)) is not None:
            number += 1
            self._events.emit("warmstart", step=number, metrics=metrics)
            self._watcher.on_warmup(number, metrics)

    def _solved(self) -> list[TokenPath]:
        folder = self._recipe.warmstart.solved
        if folder is None:
            return []
        paths = solved_paths(folder, vocab_size=len(self._tokenizer))
        self._watcher.say(f"{len(paths)} solved rollouts of {folder}")
        return paths

    def _said(self) -> Mapping[str, Demonstration]:
        """What the script says, by task."""
        most, seed = self._recipe.warmstart.max_slips, self._recipe.seed
        return {
            task.instance_id: demonstration_of(task, max_slips=most, seed=seed)
            for task in self._tasks
        }

    async def _demonstrate(self) -> list[TokenPath]:
        tokenizer, said = self._tokenizer, self._said()
        engine = ScriptedEngine(
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
            teacher(self._tasks, lambda task: said[task.instance_id].texts),
            stop_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            max_context=self._recipe.model.max_context,
        )
        host = gateway_host(self._recipe.gateway, named_url(self._recipe.environment))
        async with (
            serving(engine, tokenizer, self._recipe, name="teacher", host=host) as url,
            GatewayClient(url) as gateway,
        ):
            collector = RolloutCollector(
                self._environment, gateway, sampling=self._recipe.sampling, events=self._events
            )
            slots = asyncio.Semaphore(self._recipe.environment.concurrency)

            failures: list[str] = []

            async def demonstrate(number: int, task: Task) -> Sequence[TokenPath]:
                async with slots:
                    rollout = await collector.collect(task, f"demonstration-{number}")
                if rollout.episode.outcome is Outcome.SOLVED:
                    return _fitted_to(rollout.trace, said[task.instance_id])
                self._events.emit(
                    "demonstration.failed",
                    instance_id=task.instance_id,
                    outcome=rollout.episode.outcome.value,
                    error=rollout.episode.error,
                )
                failures.append(rollout.episode.error or str(rollout.episode.outcome))
                return ()

            async with asyncio.TaskGroup() as group:
                running = [group.create_task(demonstrate(*item)) for item in enumerate(self._tasks)]
        paths = [path for task in running for path in task.result()]
        if not paths:
            raise InfraError(
                f"none of {len(self._tasks)} demonstrations solved its task; "
                f"the last ended with {failures[-1]}",
                hint="the event log says how each ended",
            )
        return paths


def _fitted_to(trace: Trace, said: Demonstration) -> tuple[TokenPath, ...]:
    # A turn that was asked for twice moves those behind it: better no demonstration than slips.
    if said.slips and len(trace.turns) != len(said.texts):
        return ()
    return trace.paths(untrained=said.slips)


def solved_paths(folder: Path, *, vocab_size: int) -> list[TokenPath]:
    """The token paths of a run's rollouts that solved their task.

    Args:
        folder: of the run.
        vocab_size: of the tokenizer that they shall be of.

    Raises:
        ConfigError: there is none, or its ids are not of this tokenizer.
    """
    store = RolloutStore(folder / "rollouts")
    stored = (one for step in store.steps() for one in store.read(step))
    solved = (one.rollout for one in stored if one.rollout.episode.outcome is Outcome.SOLVED)
    paths = [path for rollout in solved for path in rollout.trace.paths()]
    if not paths:
        raise ConfigError(f"warmstart.solved: no rollout in {folder} solved its task")
    if max(max(path.ids) for path in paths) >= vocab_size:
        raise ConfigError(f"warmstart.solved: {folder} is of a model with another tokenizer")
    return paths


def _next(steps: Iterator[dict[str, float]]) -> Mapping[str, float] | None:
    # A StopIteration cannot cross a thread's future.
    return next(steps, None)
