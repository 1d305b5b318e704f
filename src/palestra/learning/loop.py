"""Step after step: groups in, new weights out, and at every moment fit to be killed.

A step's side effects, in their order: weights trained (in memory), weights saved,
weights published, rollouts stored, metrics row, events, checkpoint. Only the checkpoint
counts. What lies on the disk beyond the newest checkpoint belongs to steps that will
be done again: at the start it is set aside or removed. So a kill between any two
side effects costs work but never trains on a rollout twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from palestra.config import CheckpointSection, EvaluationSection
from palestra.errors import CheckpointError
from palestra.events import EventSink, NullEvents
from palestra.learning.best import BestCheckpoints
from palestra.learning.evaluations import EvaluationStore
from palestra.learning.measuring import Measuring
from palestra.learning.metrics import batch_metrics
from palestra.learning.metrics_table import MetricsTable
from palestra.learning.progress import IndexSet, Progress
from palestra.learning.protocols import (
    BatchSource,
    Checkpointer,
    Evaluator,
    LearnerT,
    LoopObserver,
    StepReport,
    WeightPublisher,
)
from palestra.learning.rollouts.batch import StepBatch
from palestra.learning.rollouts.filters import JudgedGroup
from palestra.learning.rollouts.store import RolloutStore
from palestra.learning.weights import WeightFolders

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did.

    Attributes:
        progress: where it stands now.
        metrics: of its last step in this process; empty if there was none.
        evaluation: the last in this process; empty if there was none.
    """

    progress: Progress
    metrics: Mapping[str, float]
    evaluation: Mapping[str, float]


class TrainingLoop(Generic[LearnerT]):
    """Trains a learner on what a batch source brings.

    Args:
        run_dir: of the run; ``weights/``, ``rollouts/``, ``evaluations/`` and
            ``metrics.csv`` lie in it.
        batches: brings the groups.
        learner: is trained; must stand where ``progress`` says.
        publisher: serves the weights to whoever samples.
        checkpoints: keeps what is needed to go on.
        checkpointing: when.
        evaluator: measures the policy before, after and in between; none: never.
        evaluation: when, and whether training waits.
        best: told how each step that was evaluated did; the checkpoints keep what it says.
        progress: to go on from; none: a new run.
        events: told of every step.
        observer: told of every step.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        batches: BatchSource,
        learner: LearnerT,
        publisher: WeightPublisher,
        checkpoints: Checkpointer[LearnerT],
        checkpointing: CheckpointSection,
        evaluator: Evaluator | None = None,
        evaluation: EvaluationSection | None = None,
        best: BestCheckpoints | None = None,
        progress: Progress | None = None,
        events: EventSink | None = None,
        observer: LoopObserver | None = None,
    ) -> None:
        self._batches = batches
        self._learner = learner
        self._publisher = publisher
        self._checkpoints = checkpoints
        self._checkpointing = checkpointing
        self._best = best
        self._progress = progress or Progress(version=learner.version)
        self._saved_step = self._progress.step
        self._events = events or NullEvents()
        self._observer = observer
        self._weights = WeightFolders(run_dir / "weights")
        self._rollouts = RolloutStore(run_dir / "rollouts")
        self._evaluations = EvaluationStore(run_dir / "evaluations")
        self._table = MetricsTable(run_dir / "metrics.csv")
        self._measuring = Measuring(
            evaluator,
            evaluation or EvaluationSection(),
            store=self._evaluations,
            best=best,
            events=self._events,
            observer=observer,
        )
        self._is_whole = True
        self._last_metrics: Mapping[str, float] = {}

    @property
    def progress(self) -> Progress:
        """Where the run stands: after the last complete step."""
        return self._progress

    async def run(self, steps: int) -> RunSummary:
        """Go on until ``steps`` steps are done in all, then checkpoint.

        When it is cancelled or fails, the step that is being trained is completed or
        given up as a whole, and what is complete is checkpointed.

        Raises:
            InfraError: too many episodes failed, or the engine did.
            CheckpointError: the learner is not where the progress says, or cannot be saved.
            HostError: the disk is full, or the like.
        """
        # A thread of its own: generation goes on while the learner computes.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner") as thread:
            try:
                await self._begin(thread)
                await self._measuring.before(self._progress)
                while self._progress.step < steps:
                    await self._step(thread)
                    if self._progress.step < steps and self._measuring.is_due(self._progress.step):
                        await self._measuring.between(self._progress)
                # First, so that a kill in the last evaluation costs no training.
                await self._finish(self._checkpoint(thread))
                await self._measuring.after(self._progress)
            finally:
                await self._measuring.aclose()
                await self._finish(self._checkpoint(thread))
        return RunSummary(
            progress=self._progress,
            metrics=self._last_metrics,
            evaluation=self._measuring.last,
        )

    # --- the parts of a run ---------------------------------------------------

    async def _begin(self, thread: ThreadPoolExecutor) -> None:
        """Clear away what lies beyond the checkpoint, and serve the learner's weights."""
        progress = self._progress
        if self._learner.version != progress.version:
            raise CheckpointError(
                f"the learner is at version {self._learner.version}, "
                f"but the run stands at version {progress.version}"
            )
        discarded = [
            *self._rollouts.set_aside(after_step=progress.step),
            *self._evaluations.set_aside(after_step=progress.step),
        ]
        if self._best is not None:
            self._best.forget(after_step=progress.step)
        self._table.truncate(after_step=progress.step)
        self._weights.prune(progress.version)
        self._events.emit(
            "loop.started",
            step=progress.step,
            version=progress.version,
            discarded=[path.name for path in discarded],
        )
        if self._publisher.version != progress.version:
            weights = await self._in_thread(thread, self._weights.save, self._learner)
            await self._publisher.publish(weights, progress.version)

    async def _step(self, thread: ThreadPoolExecutor) -> None:
        batch = await self._batches.next_batch(self._learner.version)
        used = self._progress.claim(batch)
        await self._finish(self._commit(thread, batch, used))
        self._measuring.check()
        step = self._progress.step
        # A score is worth nothing without the weights that it is of.
        is_rated = self._checkpointing.keep_best > 0 and self._measuring.is_due(step)
        if step % self._checkpointing.every == 0 or is_rated:
            await self._finish(self._checkpoint(thread))

    async def _commit(self, thread: ThreadPoolExecutor, batch: StepBatch, used: IndexSet) -> None:
        """All side effects of a step but the checkpoint."""
        step = self._progress.step + 1
        started = time.monotonic()
        metrics = batch_metrics(batch)
        ratios: Mapping[str, Sequence[float]] = {}
        # From here on the learner may have moved on while the progress has not.
        self._is_whole = False
        if batch.groups:
            metrics |= await self._in_thread(thread, self._learner.train_step, batch.groups)
            trained = time.monotonic()
            ratios = self._learner.ratios
            weights = await self._in_thread(thread, self._weights.save, self._learner)
            await self._publisher.publish(weights, self._learner.version)
            await self._in_thread(thread, self._weights.prune, self._learner.version)
            metrics["time/train_s"] = trained - started
            metrics["time/publish_s"] = time.monotonic() - trained
        await self._in_thread(thread, self._rollouts.write, step, batch.judged, ratios)
        metrics["time/step_s"] = batch.wait_s + time.monotonic() - started
        await self._in_thread(thread, self._table.append, step, metrics)
        self._report(step, batch, metrics)
        self._progress = Progress(
            step=step,
            version=self._learner.version,
            num_skipped=self._progress.num_skipped + (not batch.groups),
            used=used,
            scheduler=self._batches.state,
        )
        self._is_whole = True

    def _report(self, step: int, batch: StepBatch, metrics: Mapping[str, float]) -> None:
        for judged in batch.judged:
            self._events.emit("group", **_group_fields(step, judged))
        version, trained = self._learner.version, bool(batch.groups)
        self._events.emit("step", step=step, version=version, trained=trained, metrics=metrics)
        self._last_metrics = metrics
        if self._observer is not None:
            self._observer.on_step(
                StepReport(step=step, version=version, trained=trained, metrics=metrics)
            )

    async def _checkpoint(self, thread: ThreadPoolExecutor) -> None:
        """Save, unless this step is saved already or the learner is beyond it."""
        progress = self._progress
        if progress.step == self._saved_step or not self._is_whole:
            return
        await self._in_thread(
            thread, self._checkpoints.save, progress.step, self._learner, progress.to_wire()
        )
        self._saved_step = progress.step

    # --- threads and cancellation ---------------------------------------------

    @staticmethod
    async def _in_thread(
        thread: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(thread, lambda: work(*args, **kwargs))

    @staticmethod
    async def _finish(work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` to its end; a cancellation that comes meanwhile is raised after it."""
        task = asyncio.ensure_future(work)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:
                break  # raised below, from the task itself
        task.result()
        if cancelled is not None:
            raise cancelled


def _group_fields(step: int, judged: JudgedGroup) -> dict[str, Any]:
    group = judged.whole
    return {
        "step": step,
        "group_id": group.group_id,
        "instance_id": group.instance_id,
        "task_index": group.task_index,
        "rewards": [rollout.reward for rollout in group.rollouts],
        "oldest_version": group.oldest_version,
        "kept": judged.kept is not None,
        "drop_reason": judged.reason,
    }
