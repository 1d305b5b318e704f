"""When the policy is measured on held-out tasks, whether training waits, and who hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from palestra.config import EvaluationSection
from palestra.events import EventSink
from palestra.learning.best import BestCheckpoints
from palestra.learning.evaluations import EvaluationStore
from palestra.learning.progress import Progress
from palestra.learning.protocols import Evaluator, LoopObserver


class Measuring:
    """Carries out the evaluations of a run: before the first step, in between, after the last.

    Those in between may run beside the steps that follow. The engine then serves newer weights
    meanwhile; the evaluation says which. The first and the last never do, so that what a run
    is judged by is measured on the weights of one step.

    Args:
        evaluator: measures; none: never.
        section: when, and whether training waits.
        store: where what is complete lies.
        best: told of the score of each step that was measured.
        events: told of what was measured (``evaluation``) and of what was due while another
            one was still running (``evaluation.skipped``).
        observer: told of what was measured.
    """

    def __init__(
        self,
        evaluator: Evaluator | None,
        section: EvaluationSection,
        *,
        store: EvaluationStore,
        best: BestCheckpoints | None,
        events: EventSink,
        observer: LoopObserver | None,
    ) -> None:
        self._evaluator = evaluator
        self._section = section
        self._store = store
        self._best = best
        self._events = events
        self._observer = observer
        self._beside: asyncio.Task[None] | None = None
        self._measured_step: int | None = None
        self._last: Mapping[str, float] = {}

    @property
    def last(self) -> Mapping[str, float]:
        """What was measured last in this process; empty if nothing was."""
        return self._last

    def is_due(self, step: int) -> bool:
        """Whether an evaluation comes after this step, the last one of a run aside."""
        every = self._section.every
        return self._evaluator is not None and every > 0 and step > 0 and step % every == 0

    async def before(self, progress: Progress) -> None:
        """Measure where the run stands when it begins, or what a kill kept from being measured.

        Raises:
            PalestraError: what the evaluator raises.
        """
        step = progress.step
        if step == 0:
            await self._measure(progress, background=False)
        elif self.is_due(step) and not self._is_stored(step):
            await self.between(progress)

    async def between(self, progress: Progress) -> None:
        """Measure beside the next steps, or at once, as the section says.

        Raises:
            PalestraError: what the evaluator raises, also when it ran beside.
        """
        if not self._section.background:
            await self._measure(progress, background=False)
            return
        self.check()
        if self._beside is not None:
            self._events.emit("evaluation.skipped", step=progress.step)
            return
        if self._best is not None:
            # At once: the checkpoint must not be pruned before the task has begun.
            self._best.expect(progress.step)
        self._beside = asyncio.create_task(
            self._measure(progress, background=True), name=f"evaluation {progress.step}"
        )

    async def after(self, progress: Progress) -> None:
        """Let the one that runs beside come to its end, then measure where the run ends.

        Raises:
            PalestraError: what the evaluator raises.
        """
        if self._beside is not None:
            await self._beside
        if self._measured_step != progress.step:
            await self._measure(progress, background=False)

    def check(self) -> None:
        """Raise what made the evaluation that runs beside fail, if it did."""
        if self._beside is not None and self._beside.done():
            done, self._beside = self._beside, None
            done.result()

    async def aclose(self) -> None:
        """Give up the evaluation that runs beside."""
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.gather(self._beside, return_exceptions=True)
            self._beside = None

    async def _measure(self, progress: Progress, *, background: bool) -> None:
        if self._evaluator is None:
            return
        step = progress.step
        found = await self._evaluator.evaluate(
            step=step, version=progress.version, background=background
        )
        metrics = {f"eval/{name}": value for name, value in found.items()}
        self._events.emit("evaluation", step=step, metrics=metrics)
        self._last = metrics
        self._measured_step = step
        if self._best is not None:
            self._best.rate(step, found)
        if self._observer is not None:
            self._observer.on_evaluation(step, metrics)

    def _is_stored(self, step: int) -> bool:
        return all(self._store.path(step, mode).exists() for mode in self._section.modes)
