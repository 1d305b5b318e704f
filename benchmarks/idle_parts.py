"""What measures idle GPUs: a record of who was busy when, and environments of a given slowness."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from selectors import DefaultSelector, SelectorKey
from typing import Any, Literal

from palestra.learning.protocols import StepReport
from palestra.records import EpisodeResult, ExitStatus, Outcome, Task, Timings

Work = Literal["sample", "train", "publish"]


@dataclass(frozen=True, slots=True)
class Interval:
    """Something was busy from one moment to another, by ``time.monotonic``."""

    work: Work
    began_s: float
    ended_s: float


class Record:
    """Who was busy when; threads may write to it.

    Args:
        now_s: tells the time.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.now_s = now_s
        self._intervals: list[Interval] = []

    @contextmanager
    def busy(self, work: Work) -> Iterator[None]:
        """Note the time of a block."""
        began_s = self.now_s()
        try:
            yield
        finally:
            self._intervals.append(Interval(work, began_s, self.now_s()))

    def share(self, works: Sequence[Work], began_s: float, ended_s: float) -> float:
        """Share of a window in which at least one of ``works`` went on."""
        covered_s, until_s = 0.0, began_s
        for one in sorted(self._within(works, began_s, ended_s), key=lambda one: one.began_s):
            covered_s += max(0.0, one.ended_s - max(one.began_s, until_s))
            until_s = max(until_s, one.ended_s)
        return covered_s / (ended_s - began_s)

    def mean_at_once(self, work: Work, began_s: float, ended_s: float) -> float:
        """How many of ``work`` went on at once, on average over a window."""
        found = self._within([work], began_s, ended_s)
        return sum(one.ended_s - one.began_s for one in found) / (ended_s - began_s)

    def _within(self, works: Sequence[Work], began_s: float, ended_s: float) -> Iterator[Interval]:
        for one in tuple(self._intervals):
            low, high = max(began_s, one.began_s), min(ended_s, one.ended_s)
            if one.work in works and low < high:
                yield Interval(one.work, low, high)


class StepClock:
    """A loop's observer that remembers when each step was complete.

    Args:
        now_s: tells the time.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.reports: list[StepReport] = []
        self.ended_s: list[float] = []

    def on_step(self, report: StepReport) -> None:
        """Remember a step."""
        self.reports.append(report)
        self.ended_s.append(self._now_s())

    def on_evaluation(self, step: int, metrics: object) -> None:
        """Nothing is evaluated here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeShape:
    """What a normal episode is made of, and how slow a slow one is.

    Attributes:
        num_turns: of the model.
        model_s: of a turn, once it has a place in the engine.
        command_s: after each turn.
        grading_s: at the end.
        slow_share: of the episodes.
        slowness: how many times as long as a normal one a slow episode takes; commands and
            grading take the difference, since it is the environment that is slow.
    """

    num_turns: int = 6
    model_s: float = 0.1
    command_s: float = 0.045
    grading_s: float = 0.13
    slow_share: float = 0.2
    slowness: float = 5.0

    @property
    def model_total_s(self) -> float:
        """Of all turns."""
        return self.num_turns * self.model_s

    @property
    def environment_s(self) -> float:
        """Commands and grading of a normal episode."""
        return self.num_turns * self.command_s + self.grading_s

    @property
    def total_s(self) -> float:
        """A normal episode, where nothing has to wait."""
        return self.model_total_s + self.environment_s

    def drawn(self, seed: int, task: Task, number: int) -> tuple[float, float]:
        """How many times as slow the environment of an episode is, and its reward."""
        chance = random.Random(f"{seed}/{task.instance_id}/{number}")
        is_slow = chance.random() < self.slow_share
        reward = float(chance.random() < 0.5)
        if not (is_slow and self.environment_s):
            return 1.0, reward
        return (self.slowness * self.total_s - self.model_total_s) / self.environment_s, reward


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while nobody computes, and then at once.

    So what a run takes is the seconds that it sleeps, whatever else the machine does.
    """

    def __init__(self) -> None:
        self.virtual_s = 0.0
        self.num_computing = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.virtual_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Any, *args: Any
    ) -> Any:
        """Run a function in a thread; time stands still until it has ended."""
        running = super().run_in_executor(executor, func, *args)
        self.num_computing += 1
        running.add_done_callback(self._computed)
        return running

    async def pass_time(self, seconds: float) -> None:
        """Sleep for a thread that waits for it, and so does not compute."""
        self.num_computing -= 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.num_computing += 1

    def _computed(self, _: object) -> None:
        self.num_computing -= 1


class _JumpingSelector(DefaultSelector):
    """Moves a loop's time on instead of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """What is ready; with nothing ready and nobody computing, later is now."""
        if timeout is None or self._loop.num_computing:
            return super().select(None if timeout else timeout)
        ready = super().select(0)
        if not ready:
            self._loop.virtual_s += max(0.0, timeout)
        return ready


class Gpu:
    """A GPU, or one for each half, that samples and trains by the loop's time alone.

    Args:
        record: of what it did.
        places: sequences that are sampled at once; more wait. Each goes at the same speed.
        colocated: sampling stands still while the same GPU trains.
        loop: whose time it takes.
    """

    def __init__(self, record: Record, *, places: int, colocated: bool, loop: VirtualLoop) -> None:
        self._record = record
        self._places = asyncio.Semaphore(places)
        self._colocated = colocated
        self._loop = loop
        self._free = asyncio.Event()
        self._free.set()
        self._taken = asyncio.Event()

    async def sample(self, seconds: float) -> None:
        """Sample for so long, as soon as there is a place; what training interrupts goes on."""
        async with self._places:
            left_s = seconds
            while left_s > 0:
                await self._free.wait()
                began_s = self._record.now_s()
                with self._record.busy("sample"):
                    try:
                        await asyncio.wait_for(self._taken.wait(), left_s)
                    except TimeoutError:
                        return
                left_s -= self._record.now_s() - began_s

    def train(self, seconds: float) -> None:
        """Train for so long; blocks, in a thread of its own."""
        asyncio.run_coroutine_threadsafe(self._train(seconds), self._loop).result()

    async def _train(self, seconds: float) -> None:
        if self._colocated:
            self._free.clear()
            self._taken.set()
        with self._record.busy("train"):
            await self._loop.pass_time(seconds)
        self._taken.clear()
        self._free.set()


def result_of(task: Task, episode_id: str, reward: float, num_turns: int) -> EpisodeResult:
    """What a scripted episode comes to."""
    return EpisodeResult(
        episode_id=episode_id,
        instance_id=task.instance_id,
        outcome=Outcome.SOLVED if reward else Outcome.UNSOLVED,
        exit_status=ExitStatus.SUBMITTED,
        messages=(),
        patch="",
        submission=None,
        verdict=None,
        error=None,
        num_turns=num_turns,
        num_tool_calls=num_turns,
        timings=Timings(),
    )


def scripted_task(number: int) -> Task:
    """A task with a name and a statement, of which nothing else is asked."""
    return Task(
        instance_id=f"task-{number}",
        repo="owner/repo",
        base_commit="0" * 40,
        problem_statement="Something in this repository is off by one. Find it and mend it.",
        image="",
        fail_to_pass=("t::a",),
        pass_to_pass=(),
        gold_patch="",
        test_patch="",
        eval_script="true",
        log_parser="pytest",
    )
