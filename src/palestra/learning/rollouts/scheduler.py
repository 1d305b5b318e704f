"""Keeps episodes in flight and cuts what they bring into steps.

Invariants:

* A group counts as outstanding from its start until the batch that holds it is
  returned. While a step still lacks k groups, at most
  ``k + max_off_policy_steps * groups_per_step`` others are outstanding; so with
  ``max_off_policy_steps = 0`` no group starts before the weights it is for.
* A group is trained on at most ``max_off_policy_steps`` versions after the one under
  which its first episode got a place; while it waits for one it does not age. Groups
  are taken as they finish, but none is taken while that would leave too few places for
  the groups that must be trained on before it; so slow episodes are waited for, not
  lost, and the staleness filter only stands guard.
* A group leaves the books only when its batch is returned: whatever is cancelled
  before is in :attr:`RolloutScheduler.state` as pending and is sampled again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from palestra.config import RolloutsSection
from palestra.errors import InfraError
from palestra.events import EventSink, NullEvents
from palestra.learning.rollouts.ahead import ImagesAhead
from palestra.learning.rollouts.batch import StepBatch
from palestra.learning.rollouts.filters import DropReason, JudgedGroup, judge
from palestra.learning.rollouts.protocol import Collector, RolloutObserver
from palestra.learning.rollouts.task_order import Draws, Order, Tries
from palestra.records import Group, Outcome, Rollout, Task
from palestra.wire import timings_to_wire

_ERRORS_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerState:
    """Where a scheduler stands, enough to go on in another process.

    Attributes:
        position: of the next draw from the task order.
        pending: positions that were drawn and whose groups no batch has brought yet.
        quarantined: instance ids that are not drawn any more.
        draws: position and instance id of pending groups, where the position does not tell.
        tries: what an order that learns has seen of its tasks.
    """

    position: int = 0
    pending: tuple[int, ...] = ()
    quarantined: tuple[str, ...] = ()
    draws: Draws = ()
    tries: Tries = ()


@dataclass(slots=True, kw_only=True)
class _Outstanding:
    """A group that no batch has brought yet, and the last version it may be trained under.

    That version is unknown until one of its episodes begins.
    """

    group: asyncio.Task[Group]
    last_version: int | None = None


class RolloutScheduler:
    """Collects rollouts in groups, up to ``concurrency`` episodes at once.

    An async context manager; leaving it cancels all that is in flight.

    Args:
        collector: makes one rollout.
        order: draws the tasks; must stand at the position of the state to go on from.
        section: group size, groups per step, staleness, refill, failure threshold.
        run: name of the run; group and rollout ids begin with it.
        concurrency: most episodes at once.
        pending: positions to sample before any is drawn (from a former state).
        events: told of each episode that ended (``rollout``).
        observer: told the same.
        ahead: told which tasks are drawn next, a step's worth of them.
    """

    def __init__(
        self,
        *,
        collector: Collector,
        order: Order,
        section: RolloutsSection,
        run: str,
        concurrency: int,
        pending: Sequence[int] = (),
        events: EventSink | None = None,
        observer: RolloutObserver | None = None,
        ahead: ImagesAhead | None = None,
    ) -> None:
        self._collector = collector
        self._order = order
        self._section = section
        self._run = run
        # First come, first served, so siblings run together and share the engine's
        # cached prefix.
        self._slots = asyncio.Semaphore(concurrency)
        self._pending = sorted(pending)
        self._events = events or NullEvents()
        self._observer = observer
        self._ahead = ahead
        self._outstanding: dict[int, _Outstanding] = {}
        self._version = 0

    @property
    def state(self) -> SchedulerState:
        """Where the scheduler stands now."""
        return SchedulerState(
            position=self._order.position,
            pending=tuple(sorted({*self._pending, *self._outstanding})),
            quarantined=self._order.quarantined,
            draws=self._order.draws,
            tries=self._order.tries,
        )

    async def next_batch(self, version: int) -> StepBatch:
        """Bring the groups of one step, to be trained on under the weights ``version``.

        Dropped groups are replaced until ``max_refill * groups_per_step`` groups were
        used up; then the batch is short, or even empty. If the call is cancelled or
        fails, its groups stay outstanding.

        Raises:
            InfraError: more than ``max_infra_share`` of the step's episodes failed.
            UsageError: the environment cannot use a task, or refuses us, or all tasks
                are in quarantine.
        """
        started = time.monotonic()
        self._version = version
        step = _Step(self._section, version)
        while not step.is_complete:
            self._top_up(step)
            index = self._ready(step)
            if index is None:
                await self._one_more(step)
                continue
            judged = step.add(index, self._outstanding[index].group.result())
            if judged.reason is DropReason.FLAKY:
                self._quarantine(judged)
            if judged.whole.instance_id in self._order.quarantined:
                step.drop_task(judged.whole.instance_id)
            step.check_infra_share()
        self._top_up(step)
        # Only now and in this order: what is drawn next must not depend on who came first.
        for index in sorted(step.judged):
            del self._outstanding[index]
            self._note(step.judged[index])
        return StepBatch(
            version=version,
            judged=tuple(step.judged[index] for index in sorted(step.judged)),
            wait_s=time.monotonic() - started,
            num_quarantined=len(self._order.quarantined),
        )

    async def aclose(self) -> None:
        """Cancel every episode in flight and wait until its session is dropped."""
        tasks = [flight.group for flight in self._outstanding.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> RolloutScheduler:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def _quarantine(self, judged: JudgedGroup) -> None:
        instance_id = judged.whole.instance_id
        if instance_id in self._order.quarantined:
            return
        self._order.quarantine(instance_id)
        self._events.emit(
            "task.quarantined",
            instance_id=instance_id,
            group_id=judged.whole.group_id,
            flaky_tests=judged.flaky_tests,
        )

    def _note(self, judged: JudgedGroup) -> None:
        rewards = [r.reward for r in judged.whole.rollouts if r.reward is not None]
        is_flaky = judged.reason is DropReason.FLAKY
        self._order.note(
            judged.whole.task_index,
            judged.whole.instance_id,
            solved=0 if is_flaky else sum(reward > 0 for reward in rewards),
            attempts=0 if is_flaky else len(rewards),
        )

    def _top_up(self, step: _Step) -> None:
        ahead = self._section.max_off_policy_steps * self._section.groups_per_step
        while len(self._outstanding) - len(step.judged) < step.num_wanted + ahead:
            index, task = self._draw()
            self._outstanding[index] = _Outstanding(
                group=asyncio.create_task(self._run_group(index, task), name=f"group {index}")
            )
        if self._ahead is not None:
            waiting = (self._order.at(index) for index in self._pending)
            self._ahead.want((*waiting, *self._order.coming(self._section.groups_per_step)))

    def _ready(self, step: _Step) -> int | None:
        """The first finished group that the step may take, by index."""
        untaken = {i: f for i, f in self._outstanding.items() if i not in step.judged}
        for index in sorted(untaken):
            flight = untaken[index]
            if not flight.group.done():
                continue
            if flight.last_version is None:
                return index  # it failed before it began, which is raised where it is taken
            # What is too old already is lost however long we wait.
            known = [o.last_version for o in untaken.values() if o.last_version is not None]
            earlier = [last for last in known if step.version <= last < flight.last_version]
            if step.has_room(earlier):
                return index
        return None

    async def _one_more(self, step: _Step) -> None:
        """Wait until one more group has finished."""
        running = [
            f.group
            for i, f in self._outstanding.items()
            if i not in step.judged and not f.group.done()
        ]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _draw(self) -> tuple[int, Task]:
        while self._pending:
            index = self._pending.pop(0)
            task = self._order.at(index)
            if task.instance_id not in self._order.quarantined:
                return index, task
        return self._order.draw()

    async def _run_group(self, index: int, task: Task) -> Group:
        group_id = f"{self._run}-{index}"
        try:
            async with asyncio.TaskGroup() as siblings:
                rollouts = [
                    siblings.create_task(self._run_episode(task, index, number))
                    for number in range(self._section.group_size)
                ]
        except BaseExceptionGroup as errors:
            # The first is enough: it says what the user must mend.
            raise errors.exceptions[0] from None
        return Group(
            group_id=group_id,
            instance_id=task.instance_id,
            task_index=index,
            rollouts=tuple(rollout.result() for rollout in rollouts),
        )

    async def _run_episode(self, task: Task, index: int, number: int) -> Rollout:
        group_id = f"{self._run}-{index}"
        rollout_id = f"{group_id}-{number}"
        async with self._slots:
            flight = self._outstanding[index]
            if flight.last_version is None:
                flight.last_version = self._version + self._section.max_off_policy_steps
            began_s = time.time()
            if self._observer is not None:
                self._observer.on_episode_begin(rollout_id)
            rollout = await self._collector.collect(task, rollout_id)
        episode = rollout.episode
        self._events.emit(
            "rollout",
            rollout_id=rollout_id,
            group_id=group_id,
            instance_id=task.instance_id,
            began_s=began_s,
            outcome=episode.outcome.value,
            exit_status=episode.exit_status,
            reward=rollout.reward,
            num_turns=episode.num_turns,
            versions=sorted(rollout.trace.policy_versions),
            total_s=episode.timings.total_s,
            timings=timings_to_wire(episode.timings),
            error=episode.error,
        )
        if self._observer is not None:
            self._observer.on_episode(rollout)
        return rollout


class _Step:
    """The groups of a step that is being put together."""

    def __init__(self, section: RolloutsSection, version: int) -> None:
        self._section = section
        self.version = version
        self._num_kept = 0
        self._num_episodes = 0
        self._failures: list[Rollout] = []
        self.judged: dict[int, JudgedGroup] = {}

    @property
    def num_wanted(self) -> int:
        """Groups that the step still lacks, as far as it may still use up any."""
        size = self._section.groups_per_step
        return min(size - self._num_kept, self._section.max_refill * size - len(self.judged))

    @property
    def is_complete(self) -> bool:
        return self.num_wanted <= 0

    def has_room(self, last_versions: Sequence[int]) -> bool:
        """Whether groups with these deadlines find places if one other is taken now."""
        size = self._section.groups_per_step
        return all(
            sum(other <= last for other in last_versions)
            < self.num_wanted + size * (last - self.version)
            for last in last_versions
        )

    def add(self, index: int, group: Group) -> JudgedGroup:
        judged = judge(group, version=self.version, section=self._section)
        self.judged[index] = judged
        self._num_kept += judged.kept is not None
        self._num_episodes += len(group.rollouts)
        self._failures += [r for r in group.rollouts if r.episode.outcome is Outcome.INFRA_ERROR]
        return judged

    def drop_task(self, instance_id: str) -> None:
        """Drop every group of a task that is in quarantine, whenever it was judged."""
        for index, judged in self.judged.items():
            if judged.whole.instance_id == instance_id:
                self._num_kept -= judged.kept is not None
                self.judged[index] = judged.as_flaky()

    def check_infra_share(self) -> None:
        """Raise once a step's worth of groups, or the whole step, shows too many failures."""
        if len(self.judged) < self._section.groups_per_step and not self.is_complete:
            return
        share = len(self._failures) / self._num_episodes
        if share <= self._section.max_infra_share:
            return
        last = (r.episode for r in self._failures[-_ERRORS_SHOWN:])
        said = "; ".join(
            dict.fromkeys(f"{e.instance_id}: {e.error or e.exit_status}" for e in last)
        )
        raise InfraError(
            f"{len(self._failures)} of {self._num_episodes} episodes failed for reasons that are "
            f"not the policy's, more than rollouts.max_infra_share = "
            f"{self._section.max_infra_share:g} allows; the last: {said}"
        )
