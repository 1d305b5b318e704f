from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_makers import make_scheduler, until

from palestra.errors import InfraError, SandboxDied, TaskError
from palestra.events import MemoryEvents
from palestra.learning.rollouts.fake import FakeGateway, ScriptedEpisode
from palestra.learning.rollouts.filters import DropReason
from palestra.records import Outcome, Rollout, Task

SOLVED, UNSOLVED, INFRA = Outcome.SOLVED, Outcome.UNSOLVED, Outcome.INFRA_ERROR


def alternating(task: Task, number: int) -> ScriptedEpisode:
    """Every group has signal."""
    return ScriptedEpisode(outcome=SOLVED if number % 2 else UNSOLVED)


def number_of(task: Task) -> int:
    return int(task.instance_id.removeprefix("task-"))


# --- synchronous --------------------------------------------------------------


async def test_a_synchronous_batch_is_in_order_and_nothing_runs_ahead() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        # Later groups finish first.
        return ScriptedEpisode(
            outcome=SOLVED if number else UNSOLVED, delay_s=0.02 / (1 + number_of(task))
        )

    scheduler, _, environment = make_scheduler(script, groups_per_step=4)
    async with scheduler:
        batch = await scheduler.next_batch(0)
        assert [g.task_index for g in batch.groups] == [0, 1, 2, 3]
        assert [r.rollout_id for r in batch.groups[1].rollouts] == ["run-1-0", "run-1-1"]
        assert batch.outcomes == {SOLVED: 4, UNSOLVED: 4}
        await asyncio.sleep(0.01)
        assert len(environment.started) == 8, "a group ran ahead of its weights"
        assert scheduler.state.position == 4
        assert scheduler.state.pending == ()


async def test_a_slow_sibling_is_waited_for() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        slow = task.instance_id == "task-0" and number == 0
        return ScriptedEpisode(outcome=SOLVED if number else UNSOLVED, delay_s=0.1 * slow)

    scheduler, gateway, _ = make_scheduler(script)
    async with scheduler:
        batch = await scheduler.next_batch(0)
    assert [len(g.rollouts) for g in batch.groups] == [2, 2]
    assert batch.wait_s > 0.05
    assert gateway.open_sessions == ()


async def test_groups_that_are_dropped_are_replaced() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        equal = number_of(task) in (0, 2, 3)
        return ScriptedEpisode(outcome=SOLVED if equal or number else UNSOLVED)

    scheduler, _, _ = make_scheduler(script)
    async with scheduler:
        batch = await scheduler.next_batch(0)
    assert [g.task_index for g in batch.groups] == [1, 4]
    assert batch.drop_reasons == {DropReason.ALL_EQUAL: 3}
    assert len(list(batch.rollouts())) == 10


async def test_refill_ends_and_an_empty_batch_is_an_answer() -> None:
    scheduler, _, environment = make_scheduler(lambda *_: ScriptedEpisode(), max_refill=3)
    async with scheduler:
        batch = await scheduler.next_batch(0)
    assert batch.groups == ()
    assert batch.drop_reasons == {DropReason.ALL_EQUAL: 6}
    assert len(environment.started) == 12, "3 * 2 groups of 2"


async def test_what_is_kept_does_not_depend_on_timing() -> None:
    kept = set()
    for seed in range(5):
        delays = random.Random(seed)

        def script(task: Task, number: int, delays: random.Random = delays) -> ScriptedEpisode:
            equal = number_of(task) % 3 == 0
            return ScriptedEpisode(
                outcome=SOLVED if equal or number else UNSOLVED, delay_s=delays.random() / 100
            )

        scheduler, _, _ = make_scheduler(script, groups_per_step=3)
        async with scheduler:
            batches = [await scheduler.next_batch(0) for _ in range(3)]
        kept.add(tuple(tuple(j.whole.task_index for j in b.judged) for b in batches))
    assert len(kept) == 1, kept


async def test_concurrency_is_a_bound_and_siblings_start_together() -> None:
    scheduler, _, environment = make_scheduler(
        lambda t, n: ScriptedEpisode(outcome=SOLVED if n % 2 else UNSOLVED, delay_s=0.005),
        groups_per_step=4,
        group_size=4,
        concurrency=4,
    )
    async with scheduler:
        await scheduler.next_batch(0)
    assert environment.max_running == 4
    assert environment.started == [f"task-{i // 4}" for i in range(16)]


# --- trouble ------------------------------------------------------------------


async def test_infra_errors_are_retried_in_a_new_session_with_a_new_key() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        if number < 2:
            return ScriptedEpisode(error=SandboxDied("it died") if number else None, outcome=INFRA)
        return alternating(task, number)

    scheduler, gateway, environment = make_scheduler(script, infra_retries=2)
    async with scheduler:
        batch = await scheduler.next_batch(0)
    assert batch.infra_share == 0
    assert len(batch.groups) == 2
    assert len(set(environment.keys)) == len(environment.keys) == 8
    assert len(gateway.opened) == 8
    assert gateway.open_sessions == ()


async def test_infra_errors_are_never_trained_on_and_are_counted() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        if number == 0:
            return ScriptedEpisode(outcome=INFRA)
        return alternating(task, number)

    scheduler, _, _ = make_scheduler(script, group_size=4)
    async with scheduler:
        batch = await scheduler.next_batch(0)
    assert batch.infra_share == 0.25
    for group in batch.groups:
        assert len(group.rollouts) == 3
        assert all(r.reward is not None for r in group.rollouts)
    assert all(len(j.whole.rollouts) == 4 for j in batch.judged)


async def test_too_many_infra_errors_stop_the_run_and_say_why() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        error = SandboxDied(f"no space for {task.instance_id}") if number % 4 < 3 else None
        return ScriptedEpisode(error=error)

    scheduler, gateway, environment = make_scheduler(script, group_size=4, max_infra_share=0.5)
    async with scheduler:
        with pytest.raises(InfraError, match=r"6 of 8 .*max_infra_share = 0\.5.*no space for"):
            await scheduler.next_batch(0)
    assert len(environment.started) == 8, "it stops after one step's worth, not after all refills"
    assert gateway.open_sessions == ()


async def test_a_share_at_the_threshold_is_allowed() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        return ScriptedEpisode(outcome=(SOLVED, UNSOLVED, INFRA, INFRA)[number % 4])

    scheduler, _, _ = make_scheduler(script, group_size=4, max_infra_share=0.5)
    async with scheduler:
        assert len((await scheduler.next_batch(0)).groups) == 2


async def test_a_task_the_server_cannot_use_stops_the_run() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        bad = task.instance_id == "task-1" and number == 1
        return ScriptedEpisode(error=TaskError("image: missing") if bad else None, delay_s=0.01)

    scheduler, gateway, environment = make_scheduler(script)
    async with scheduler:
        with pytest.raises(TaskError, match="image: missing"):
            await scheduler.next_batch(0)
    assert gateway.open_sessions == ()
    assert environment.num_running == 0


async def test_a_flaky_task_is_never_drawn_again() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        if task.instance_id == "task-0":
            return ScriptedEpisode(outcome=Outcome.FLAKY)
        return alternating(task, number)

    scheduler, _, environment = make_scheduler(script, num_tasks=3, groups_per_step=4)
    async with scheduler:
        await scheduler.next_batch(0)
        await scheduler.next_batch(0)
        assert scheduler.state.quarantined == ("task-0",)
    # The first draw of four groups saw it twice, before its first verdict.
    assert environment.started.count("task-0") == 4


# --- cancellation -------------------------------------------------------------


async def test_closing_drops_every_session() -> None:
    scheduler, gateway, environment = make_scheduler(
        lambda *_: ScriptedEpisode(delay_s=60), groups_per_step=8, group_size=4, concurrency=10
    )
    async with scheduler:
        waiting = asyncio.create_task(scheduler.next_batch(0))
        await until(lambda: environment.num_running == 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert environment.num_running == 0
    assert gateway.open_sessions == ()
    assert len(gateway.opened) == 10


@pytest.mark.parametrize("num_turns_of_loop", range(12))
async def test_closing_at_any_moment_of_a_session_leaks_none(num_turns_of_loop: int) -> None:
    scheduler, gateway, environment = make_scheduler(alternating)
    async with scheduler:
        waiting = asyncio.create_task(scheduler.next_batch(0))
        for _ in range(num_turns_of_loop):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert gateway.open_sessions == ()
    assert environment.num_running == 0


async def test_a_cancelled_step_loses_no_group() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        slow = task.instance_id == "task-1"
        return ScriptedEpisode(outcome=SOLVED if number else UNSOLVED, delay_s=0.05 * slow)

    scheduler, _, environment = make_scheduler(script)
    async with scheduler:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await scheduler.next_batch(0)
        assert scheduler.state.pending == (0, 1), "nothing was delivered yet"
        batch = await scheduler.next_batch(0)
        assert [g.task_index for g in batch.groups] == [0, 1]
        assert scheduler.state.pending == ()
    assert len(environment.started) == 4, "finished groups are not sampled again"


async def test_pending_groups_come_first_in_the_next_life() -> None:
    scheduler, _, _ = make_scheduler(alternating, max_off_policy_steps=2)
    async with scheduler:
        await scheduler.next_batch(0)
        state = scheduler.state
    assert state.pending == (2, 3, 4, 5)
    assert state.position == 6
    resumed, _, _ = make_scheduler(alternating, state=state)
    async with resumed:
        batches = [await resumed.next_batch(0) for _ in range(3)]
    assert [[g.task_index for g in b.groups] for b in batches] == [[2, 3], [4, 5], [6, 7]]


# --- staleness ----------------------------------------------------------------


async def test_generation_goes_on_while_a_step_is_trained() -> None:
    scheduler, _, environment = make_scheduler(
        lambda t, n: ScriptedEpisode(outcome=SOLVED if n else UNSOLVED, delay_s=0.001),
        max_off_policy_steps=1,
    )
    async with scheduler:
        await scheduler.next_batch(0)
        await asyncio.sleep(0.05)  # the learner works
        assert environment.num_running == 0
        assert len(environment.started) == 8, "one step of groups ahead, and no more"


async def test_a_group_that_came_out_too_stale_is_dropped() -> None:
    gateway = FakeGateway()
    scheduler, _, _ = make_scheduler(alternating, gateway=gateway, max_off_policy_steps=1)
    async with scheduler:
        await scheduler.next_batch(0)
        gateway.version = 2  # two steps at once: the groups in flight are from version 0
        batch = await scheduler.next_batch(2)
    assert batch.drop_reasons == {DropReason.STALE: 2}
    assert [g.oldest_version for g in batch.groups] == [2, 2]


async def test_a_group_does_not_age_while_it_waits_for_a_place() -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        is_slow = task.instance_id == "task-2" and number == 1
        outcome = SOLVED if number else UNSOLVED
        return ScriptedEpisode(outcome=outcome, delay_s=60.0 if is_slow else 0.0)

    scheduler, gateway, _ = make_scheduler(
        script, groups_per_step=1, max_off_policy_steps=2, concurrency=2
    )
    async with scheduler, asyncio.timeout(20):
        for version, expected in enumerate([0, 1]):
            batch = await scheduler.next_batch(version)
            assert [group.task_index for group in batch.groups] == [expected]
            gateway.version = version + 1
        # Group 2 was there from the first step on, but began under version 1 at the earliest:
        # it may come a step later, so nobody waits for its slow episode now.
        batch = await scheduler.next_batch(2)
    assert [group.task_index for group in batch.groups] == [3]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    allowed=st.integers(0, 3),
    groups_per_step=st.integers(1, 4),
    concurrency=st.integers(1, 20),
    equal_share=st.sampled_from([0.0, 0.3]),
)
def test_staleness_stays_in_bounds_whatever_the_delays(
    seed: int, allowed: int, groups_per_step: int, concurrency: int, equal_share: float
) -> None:
    draw = random.Random(seed)
    episodes: dict[str, tuple[int, int]] = {}

    def script(task: Task, number: int) -> ScriptedEpisode:
        if number == 0:
            outcomes = (SOLVED, SOLVED if draw.random() < equal_share else UNSOLVED)
            episodes[task.instance_id] = outcomes
        # Slow ones take several steps.
        delay_s = draw.choice([0.0, 0.0, 0.001, 0.01])
        return ScriptedEpisode(outcome=episodes[task.instance_id][number], delay_s=delay_s)

    async def run() -> None:
        gateway = FakeGateway()
        scheduler, _, environment = make_scheduler(
            script,
            gateway=gateway,
            max_off_policy_steps=allowed,
            groups_per_step=groups_per_step,
            concurrency=concurrency,
            max_refill=50,
        )
        used: list[int] = []
        async with scheduler:
            for version in range(8):
                before = len(used)
                batch = await scheduler.next_batch(version)
                used += [j.whole.task_index for j in batch.judged]
                ahead = len(scheduler.state.pending)
                assert ahead <= allowed * groups_per_step, "it ran too far ahead"
                assert len(used) > before
                for group in batch.groups:
                    assert group.oldest_version is not None
                    assert version - allowed <= group.oldest_version <= version
                assert len(batch.groups) == groups_per_step
                assert batch.drop_reasons[DropReason.STALE] == 0, "slow groups were lost"
                await asyncio.sleep(draw.choice([0.0, 0.002]))
                gateway.version = version + 1
        assert len(set(used)) == len(used), "a group came twice"
        assert environment.max_running <= concurrency
        assert gateway.open_sessions == ()

    asyncio.run(run())


# --- reports ------------------------------------------------------------------


async def test_every_episode_is_reported_as_it_ends() -> None:
    seen: list[Rollout] = []

    class Observer:
        def on_episode_begin(self, rollout_id: str) -> None: ...

        def on_episode(self, rollout: Rollout) -> None:
            seen.append(rollout)

    events = MemoryEvents()
    scheduler, _, _ = make_scheduler(alternating, observer=Observer(), events=events)
    async with scheduler:
        batch = await scheduler.next_batch(0)
    assert {r.rollout_id for r in seen} == {r.rollout_id for r in batch.rollouts()}
    told = events.of_kind("rollout")
    assert len(told) == 4
    assert {e.fields["outcome"] for e in told} == {"solved", "unsolved"}
    assert told[0].fields["versions"] == [0]
