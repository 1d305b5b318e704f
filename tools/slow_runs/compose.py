"""A real run of the demo policy on katas, each of whose stages can be delayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from palestra.config import Recipe
from palestra.dashboard.run_log import run_log
from palestra.dashboard.slow import SlowReport, why_slow
from palestra.environment.agents.choose import make_agent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.server.serve import serve
from palestra.environment.server.service import EpisodeService
from palestra.events import EventLog, read_events
from palestra.learning.loop import TrainingLoop
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.environment_client import EnvironmentClient
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.learning.rollouts.scheduler import RolloutScheduler
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.learning.training import Trainer
from palestra.run.policy import find_model, load_tokenizer, local_engine, serving
from palestra.run.world import make_grader, open_sandboxes
from palestra.tasks.source import load_tasks
from slow_runs.delays import (
    Delays,
    NoCheckpoints,
    SlowAgent,
    SlowBackend,
    SlowCollector,
    SlowEngine,
    SlowGrader,
    SlowLearner,
    SlowPublisher,
)


@asynccontextmanager
async def environment(recipe: Recipe, delays: Delays) -> AsyncIterator[EnvironmentClient]:
    """A real environment server in this process, on a free port."""
    agent = make_agent(
        recipe.agent,
        step_timeout_s=recipe.environment.step_timeout_s,
        time_limit_s=recipe.environment.episode_timeout_s,
    )
    backend, limits = await open_sandboxes(recipe)
    runner = EpisodeRunner(
        SlowBackend(backend, pull_s=delays.pull, start_s=delays.start),
        SlowAgent(agent, delays.command),
        SlowGrader(make_grader(recipe, backend, limits), delays.grading),
        recipe.environment,
        limits,
    )
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    server = asyncio.create_task(
        serve(
            EpisodeService(runner, recipe.environment),
            host="127.0.0.1",
            port=0,
            token=None,
            on_ready=ready.set_result,
            stop=stop,
        )
    )
    try:
        async with EnvironmentClient(await ready) as client:
            yield client
    finally:
        stop.set()
        await server


async def slow_run(recipe: Recipe, folder: Path, delays: Delays) -> SlowReport:
    """Train for the recipe's steps under ``delays`` and say why that was slow."""
    model = find_model(recipe.model.path)
    async with AsyncExitStack() as stack:
        events = stack.enter_context(EventLog(folder / "events.jsonl"))
        client = await stack.enter_async_context(environment(recipe, delays))
        trainer = Trainer(
            model, model=recipe.model, training=recipe.training, truncated="keep", seed=recipe.seed
        )
        engine = await stack.enter_async_context(local_engine(model, recipe))
        url = await stack.enter_async_context(
            serving(SlowEngine(engine, delays.model), load_tokenizer(model), recipe, name="policy")
        )
        gateway = await stack.enter_async_context(GatewayClient(url))
        collector = RolloutCollector(
            client, gateway, sampling=recipe.sampling, seed=recipe.seed, events=events
        )
        scheduler = await stack.enter_async_context(
            RolloutScheduler(
                collector=SlowCollector(collector, delays.idle),
                order=TaskOrder(load_tasks(recipe.tasks.train), seed=recipe.seed, shuffle=True),
                section=recipe.rollouts,
                run=recipe.name,
                concurrency=recipe.environment.concurrency,
                events=events,
            )
        )
        loop: TrainingLoop[SlowLearner[Trainer]] = TrainingLoop(
            run_dir=folder,
            batches=scheduler,
            learner=SlowLearner(trainer, delays.train),
            publisher=SlowPublisher(engine, delays.publish),
            checkpoints=NoCheckpoints(),
            checkpointing=recipe.checkpoints,
            events=events,
        )
        await loop.run(recipe.training.steps)
    return why_slow(run_log(read_events(folder / "events.jsonl")), recipe)
