"""Grades stored patches again: with a new grader, other tests or another image."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from palestra.environment.grading.protocol import Grader
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits, SandboxSpec
from palestra.errors import InfraError
from palestra.records import EpisodeResult, Outcome, Task, Verdict
from palestra.run.episode_tasks import EpisodeTasks
from palestra.run.stored_episodes import StoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedTest:
    """A test that ended another way; ``None``: it did not run."""

    test: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Regraded:
    """One patch, graded again.

    Attributes:
        name: of the episode.
        instance_id: of its task.
        before: as it was stored, without its conversation.
        after: with the new verdict and the outcome that follows from it.
        tests: that ended another way, in alphabetical order.
    """

    name: str
    instance_id: str
    before: EpisodeResult
    after: EpisodeResult
    tests: tuple[ChangedTest, ...]

    @property
    def is_changed(self) -> bool:
        """Whether outcome, reward or a test is another one now."""
        return bool(self.tests) or (self.before.outcome, self.before.reward) != (
            self.after.outcome,
            self.after.reward,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRegrade:
    """A patch that could not be graded again, and why."""

    name: str
    instance_id: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegradeReport:
    """What came of grading a run's patches again.

    Attributes:
        regraded: every patch that was graded, in the order of the run.
        failed: those that could not be, for reasons that are not the patch's.
        num_without_patch: episodes that left none.
    """

    regraded: tuple[Regraded, ...]
    failed: tuple[FailedRegrade, ...]
    num_without_patch: int

    @property
    def changed(self) -> tuple[Regraded, ...]:
        """Those whose outcome, reward or tests changed."""
        return tuple(item for item in self.regraded if item.is_changed)

    @property
    def moves(self) -> Counter[tuple[str, str]]:
        """How many went from one outcome to another."""
        return Counter(
            (item.before.outcome.value, item.after.outcome.value)
            for item in self.regraded
            if item.before.outcome is not item.after.outcome
        )


async def regrade(
    episodes: Iterable[StoredEpisode],
    tasks: EpisodeTasks,
    grader: Grader,
    *,
    backend: SandboxBackend,
    limits: SandboxLimits,
    concurrency: int,
    on_episode: Callable[[Regraded | FailedRegrade], None] = lambda _: None,
) -> RegradeReport:
    """Grade the patch of every episode, ``concurrency`` at once.

    Args:
        episodes: as they were stored.
        tasks: that they worked on, as they are to be graded now.
        grader: judges.
        backend: that the grader starts its sandboxes with; brings images.
        limits: of its sandboxes.
        concurrency: most gradings at once.
        on_episode: told of each as it is done.

    Raises:
        UsageError: a row cannot be graded at all, or the machine refuses.
    """
    places = asyncio.Semaphore(concurrency)

    async def one(stored: StoredEpisode) -> Regraded | FailedRegrade:
        async with places:
            done = await _regrade_one(stored, tasks, grader, backend, limits)
        on_episode(done)
        return done

    num_without_patch = 0
    running: list[asyncio.Task[Regraded | FailedRegrade]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for stored in episodes:
                if stored.episode.patch is None:
                    num_without_patch += 1
                else:
                    running.append(group.create_task(one(_slim(stored))))
    except BaseExceptionGroup as errors:
        # The first is enough: it says what the user must mend.
        raise errors.exceptions[0] from None
    done = [task.result() for task in running]
    return RegradeReport(
        regraded=tuple(item for item in done if isinstance(item, Regraded)),
        failed=tuple(item for item in done if isinstance(item, FailedRegrade)),
        num_without_patch=num_without_patch,
    )


def _slim(stored: StoredEpisode) -> StoredEpisode:
    """Without the conversation, which nobody reads here and a whole run has gigabytes of."""
    return replace(stored, episode=replace(stored.episode, messages=(), commands=None))


async def _regrade_one(
    stored: StoredEpisode,
    tasks: EpisodeTasks,
    grader: Grader,
    backend: SandboxBackend,
    limits: SandboxLimits,
) -> Regraded | FailedRegrade:
    before = stored.episode
    instance_id = before.instance_id
    task = tasks.find(instance_id)
    if task is None:
        return _failed(stored, "no row of this id")
    try:
        await _bring_image(task, backend, limits)
        verdict = await grader.grade(task, before.patch or "")
    except InfraError as error:
        return _failed(stored, f"{type(error).__name__}: {error}")
    after = replace(
        before, verdict=verdict, outcome=outcome_after(before.outcome, verdict), error=None
    )
    return Regraded(
        name=stored.name,
        instance_id=instance_id,
        before=before,
        after=after,
        tests=_changed_tests(before.verdict, verdict),
    )


async def _bring_image(task: Task, backend: SandboxBackend, limits: SandboxLimits) -> None:
    await backend.ensure_image(task.image, lambda _: None)
    await backend.prepare(SandboxSpec.for_task(task, limits, {}))


def outcome_after(before: Outcome, verdict: Verdict) -> Outcome:
    """The outcome that an episode has with another verdict on its patch.

    How the agent stopped does not change: one that ran out of budget stays truncated.
    """
    if verdict.tampered:
        return Outcome.TAMPERED
    if before is Outcome.TRUNCATED:
        return Outcome.TRUNCATED
    return Outcome.SOLVED if verdict.resolved else Outcome.UNSOLVED


def _changed_tests(before: Verdict | None, after: Verdict) -> tuple[ChangedTest, ...]:
    if before is None:
        return ()
    names = sorted({*before.statuses, *after.statuses})
    pairs = ((name, before.statuses.get(name), after.statuses.get(name)) for name in names)
    return tuple(
        ChangedTest(test=name, before=old, after=new) for name, old, new in pairs if old != new
    )


def _failed(stored: StoredEpisode, error: str) -> FailedRegrade:
    return FailedRegrade(name=stored.name, instance_id=stored.episode.instance_id, error=error)
