"""``palestra train``: wires environment, gateway, engine, trainer and loop, once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from palestra.addresses import gateway_host, named_url, without_secrets
from palestra.config import Recipe
from palestra.errors import CheckpointError
from palestra.events import EventLog, EventSink
from palestra.learning.best import BestCheckpoints
from palestra.learning.evaluations import EvaluationStore
from palestra.learning.loop import RunSummary, TrainingLoop
from palestra.learning.progress import Progress
from palestra.learning.rollouts.ahead import ImagesAhead
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.environment_client import EnvironmentClient
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.learning.rollouts.mixed_order import MixedOrder
from palestra.learning.rollouts.scheduler import RolloutScheduler, SchedulerState
from palestra.learning.rollouts.task_order import Order, TaskOrder
from palestra.learning.training import Checkpoint, CheckpointStore, Trainer
from palestra.policy.engines.protocol import Engine
from palestra.records import Task
from palestra.run.announcement import Announcement
from palestra.run.directory import RunDirectory
from palestra.run.engine_servers import engine_of
from palestra.run.environment import environment_url
from palestra.run.facts import gather_facts
from palestra.run.gate import require_certificates
from palestra.run.heldout import HeldOutEvaluator
from palestra.run.loggers.choose import logged
from palestra.run.policy import load_tokenizer, model_folder, serving
from palestra.run.warmup import Warmup
from palestra.run.watching import Watcher
from palestra.tasks.source import load_tasks

__all__ = ["RunTasks", "load_run_tasks", "require_certificates", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTasks:
    """The tasks of a run, loaded before anything starts."""

    train: Sequence[Task]
    heldout: Sequence[Task]
    warmstart: Sequence[Task]


def load_run_tasks(recipe: Recipe, on_bad_row: Callable[[str], None]) -> RunTasks:
    """Load every task that the recipe names.

    Args:
        recipe: names the sources.
        on_bad_row: told of each row that cannot be used, in one line; the others go on.

    Raises:
        TaskError: a source is unknown or has no row that can be used.
    """
    load = partial(load_tasks, on_bad_row="skip", report=on_bad_row)
    return RunTasks(
        train=load(recipe.tasks.train),
        heldout=load(recipe.tasks.heldout) if recipe.tasks.heldout else (),
        warmstart=load(recipe.warmstart.tasks)
        if recipe.warmstart.steps and recipe.warmstart.tasks
        else (),
    )


async def train(recipe: Recipe, run: RunDirectory, tasks: RunTasks, watcher: Watcher) -> RunSummary:
    """Run a recipe to its end, from its newest checkpoint if it has one.

    Cancelling it checkpoints what is complete and stops everything that it started.

    Raises:
        PalestraError: what cannot go on, by its type.
    """
    async with AsyncExitStack() as stack:
        events = stack.enter_context(_events(recipe, run, watcher))
        events.emit("run.started", facts=gather_facts(sys.argv[1:], accelerators=_accelerators()))
        environment = await stack.enter_async_context(_environment(recipe, run, watcher, events))
        keeping = recipe.checkpoints
        best = BestCheckpoints(run.checkpoints, metric=recipe.score, count=keeping.keep_best)
        store = CheckpointStore(run.checkpoints, keeping.keep_last, best=best, events=events)
        watcher.say("loading the model")
        trainer, checkpoint = await asyncio.to_thread(_trainer, recipe, run, tasks, store)
        if checkpoint is None:
            warmup = _warmup(recipe, tasks, trainer, environment, watcher, events)
            await warmup.run(trainer)
            checkpoint = await asyncio.to_thread(_first_checkpoint, trainer, store)
        progress = Progress.from_wire(checkpoint.progress)
        engine = await stack.enter_async_context(
            engine_of(
                recipe,
                model=trainer.model_path,
                weights=checkpoint.model,
                version=progress.version,
                logs=run.root,
                events=events,
                say=watcher.say,
            )
        )
        serving_gateway = _gateway(engine, checkpoint.model, recipe, environment, run)
        gateway = await stack.enter_async_context(serving_gateway)
        collector = _collector(recipe, environment, gateway, events)
        scheduler = await stack.enter_async_context(
            _scheduler(recipe, tasks, collector, environment, progress, watcher, events)
        )
        loop: TrainingLoop[Trainer] = TrainingLoop(
            run_dir=run.root,
            batches=scheduler,
            learner=trainer,
            publisher=engine,
            checkpoints=store,
            checkpointing=recipe.checkpoints,
            evaluator=_evaluator(recipe, run, tasks, environment, gateway, watcher, events),
            evaluation=recipe.evaluation,
            best=best,
            progress=progress,
            events=events,
            observer=watcher,
        )
        return await loop.run(recipe.training.steps)


def _evaluator(
    recipe: Recipe,
    run: RunDirectory,
    tasks: RunTasks,
    environment: EnvironmentClient,
    gateway: GatewayClient,
    watcher: Watcher,
    events: EventSink,
) -> HeldOutEvaluator | None:
    if not tasks.heldout:
        return None
    return HeldOutEvaluator(
        tasks.heldout,
        environment,
        gateway,
        recipe=recipe,
        store=EvaluationStore(run.evaluations),
        watcher=watcher,
        events=events,
    )


def _warmup(
    recipe: Recipe,
    tasks: RunTasks,
    trainer: Trainer,
    environment: EnvironmentClient,
    watcher: Watcher,
    events: EventSink,
) -> Warmup:
    tokenizer = load_tokenizer(trainer.model_path)
    return Warmup(recipe, tasks.warmstart, tokenizer, environment, watcher, events)


def _collector(
    recipe: Recipe, environment: EnvironmentClient, gateway: GatewayClient, events: EventSink
) -> RolloutCollector:
    return RolloutCollector(
        environment,
        gateway,
        sampling=recipe.sampling,
        infra_retries=recipe.rollouts.infra_retries,
        seed=recipe.seed,
        events=events,
    )


@contextmanager
def _events(recipe: Recipe, run: RunDirectory, watcher: Watcher) -> Iterator[EventSink]:
    with EventLog(run.events) as log, logged(log, recipe, run, say=watcher.say) as events:
        yield events


def _accelerators() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


@asynccontextmanager
async def _environment(
    recipe: Recipe, run: RunDirectory, watcher: Watcher, events: EventSink
) -> AsyncIterator[EnvironmentClient]:
    section = recipe.environment
    longest_s = (
        section.start_timeout_s * 2 + section.episode_timeout_s + section.eval_timeout_s
    ) * 4  # a request may also wait in the server's queue

    def on_start(announcement: Announcement) -> None:
        watcher.say(announcement.sandbox)
        events.emit(
            "sandbox.chosen", backend=announcement.backend, description=announcement.sandbox
        )

    async with (
        environment_url(section, run, on_start=on_start) as url,
        EnvironmentClient(
            url,
            section.token,
            timeout_s=longest_s,
            # A server of our own that does not answer is dead, and stays so.
            outage_s=section.outage_s if named_url(section) else 0.0,
            say=watcher.say,
        ) as client,
    ):
        await client.health()
        events.emit("environment.ready", url=without_secrets(url))
        yield client


@asynccontextmanager
async def _gateway(
    engine: Engine, folder: Path, recipe: Recipe, environment: EnvironmentClient, run: RunDirectory
) -> AsyncIterator[GatewayClient]:
    host = gateway_host(recipe.gateway, named_url(recipe.environment))
    spill = run.root / "ledger"
    async with (
        serving(
            engine, load_tokenizer(folder), recipe, name="policy", host=host, spill=spill
        ) as url,
        GatewayClient(url) as client,
    ):
        await environment.reach(f"{recipe.gateway.public_url or url}/v1")
        yield client


@asynccontextmanager
async def _scheduler(
    recipe: Recipe,
    tasks: RunTasks,
    collector: RolloutCollector,
    environment: EnvironmentClient,
    progress: Progress,
    watcher: Watcher,
    events: EventSink,
) -> AsyncIterator[RolloutScheduler]:
    async with (
        ImagesAhead(environment.prefetch, events=events) as ahead,
        RolloutScheduler(
            collector=collector,
            order=_order(recipe, tasks, progress.scheduler),
            section=recipe.rollouts,
            run=recipe.name,
            concurrency=recipe.environment.concurrency,
            pending=progress.scheduler.pending,
            events=events,
            observer=watcher,
            ahead=ahead,
        ) as scheduler,
    ):
        ahead.want(tasks.heldout)
        yield scheduler


def _order(recipe: Recipe, tasks: RunTasks, state: SchedulerState) -> Order:
    uniform = TaskOrder(
        tasks.train,
        seed=recipe.seed,
        shuffle=recipe.tasks.shuffle,
        position=state.position,
        quarantined=state.quarantined,
    )
    if recipe.tasks.difficulty == "ignore":
        return uniform
    return MixedOrder(
        uniform,
        group_size=recipe.rollouts.group_size,
        seed=recipe.seed,
        draws=state.draws,
        tries=state.tries,
    )


def _trainer(
    recipe: Recipe, run: RunDirectory, tasks: RunTasks, store: CheckpointStore
) -> tuple[Trainer, Checkpoint | None]:
    folder = model_folder(
        recipe.model, run.start_model, (*tasks.train, *tasks.warmstart), recipe.seed
    )
    trainer = Trainer(
        folder,
        model=recipe.model,
        training=recipe.training,
        truncated=recipe.rollouts.truncated,
        max_row_tokens=recipe.rollouts.max_row_tokens,
        seed=recipe.seed,
    )
    checkpoint = store.latest()
    if checkpoint is not None:
        store.load(checkpoint, trainer)
    return trainer, checkpoint


def _first_checkpoint(trainer: Trainer, store: CheckpointStore) -> Checkpoint:
    # What the engine starts from, and what a run that is killed in its first step goes back to.
    store.save(0, trainer, Progress(version=trainer.version).to_wire())
    checkpoint = store.latest()
    if checkpoint is None:
        raise CheckpointError("the first checkpoint is gone right after it was written")
    return checkpoint
