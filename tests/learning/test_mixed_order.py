"""Tasks are drawn by how likely their groups are mixed, and a run that goes on draws the same."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_makers import make_task

from palestra.config import RolloutsSection, SamplingSection
from palestra.errors import TaskError
from palestra.learning.progress import Progress
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.fake import FakeEnvironment, FakeGateway, ScriptedEpisode
from palestra.learning.rollouts.mixed_order import MixedOrder
from palestra.learning.rollouts.scheduler import RolloutScheduler, SchedulerState
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.records import Outcome, Task

LEVELS = (1, 2, 3, 4, 5)


def tasks_of_levels(per_level: int = 4) -> list[Task]:
    return [
        dataclasses.replace(make_task(f"{level}-{number}"), row={"difficulty": level})
        for level in LEVELS
        for number in range(per_level)
    ]


def make_order(
    tasks: list[Task] | None = None, *, state: SchedulerState | None = None, seed: int = 0
) -> MixedOrder:
    state = state or SchedulerState()
    uniform = TaskOrder(
        tasks or tasks_of_levels(),
        seed=seed,
        position=state.position,
        quarantined=state.quarantined,
    )
    return MixedOrder(uniform, group_size=8, seed=seed, draws=state.draws, tries=state.tries)


def state_of(order: MixedOrder) -> SchedulerState:
    """The state after a checkpoint was written and read."""
    state = SchedulerState(
        position=order.position,
        pending=tuple(position for position, _ in order.draws),
        quarantined=order.quarantined,
        draws=order.draws,
        tries=order.tries,
    )
    wire = json.loads(json.dumps(Progress(scheduler=state).to_wire()))
    return Progress.from_wire(wire).scheduler


def level(task: Task) -> int:
    return int(task.row["difficulty"])


def play(order: MixedOrder, rates: dict[int, float], num_groups: int) -> Counter[int]:
    """Groups whose attempts solve their task as often as their level says."""
    levels: Counter[int] = Counter()
    for _ in range(num_groups):
        position, task = order.draw()
        levels[level(task)] += 1
        order.note(position, task.instance_id, solved=round(8 * rates[level(task)]), attempts=8)
    return levels


def test_the_middle_is_drawn_more_often_and_nothing_is_forgotten() -> None:
    levels = Counter(level(make_order(seed=seed).draw()[1]) for seed in range(3000))
    assert levels[3] > levels[2] > levels[1], levels
    assert levels[3] > levels[4] > levels[5], levels
    assert min(levels.values()) > 300, levels


@pytest.mark.parametrize("middle", [1, 5])
def test_the_results_of_the_run_outweigh_what_the_rows_say(middle: int) -> None:
    rates = {n: 0.5 if n == middle else 1.0 if n < middle else 0.0 for n in LEVELS}
    order = make_order()
    play(order, rates, 150)
    late = play(order, rates, 150)
    assert late[middle] == max(late.values()), late
    assert late[middle] > 75, late
    assert all(late[n] > 0 for n in LEVELS), f"no exploration: {late}"


def test_a_policy_that_learns_is_followed() -> None:
    order = make_order()
    play(order, {1: 0.5, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}, 200)
    late = play(order, {1: 1.0, 2: 1.0, 3: 1.0, 4: 0.5, 5: 0.0}, 300)
    assert late[4] > late[1], late


@given(seed=st.integers(0, 20), before=st.integers(0, 30), out=st.integers(0, 6))
def test_a_state_is_all_it_takes_to_go_on(seed: int, before: int, out: int) -> None:
    rates = {1: 1.0, 2: 0.75, 3: 0.5, 4: 0.125, 5: 0.0}
    whole = make_order(seed=seed)
    play(whole, rates, before)
    drawn = [whole.draw() for _ in range(out)]
    resumed = make_order(seed=seed, state=state_of(whole))
    assert [(p, resumed.at(p)) for p, _ in drawn] == drawn
    for _ in range(12):
        one, other = whole.draw(), resumed.draw()
        assert one == other
        for order in (whole, resumed):
            order.note(one[0], one[1].instance_id, solved=3, attempts=8)
    assert whole.tries == resumed.tries


def test_what_comes_is_what_is_drawn_when_nothing_happens_in_between() -> None:
    order = make_order()
    play(order, dict.fromkeys(LEVELS, 0.5), 10)
    coming = order.coming(7)
    assert coming == tuple(order.draw()[1] for _ in range(7))


def test_a_task_that_is_out_is_not_drawn_while_there_are_others() -> None:
    order = make_order(tasks_of_levels(per_level=2))
    drawn = [order.draw()[1].instance_id for _ in range(10)]
    assert len(set(drawn)) == 10
    assert order.draw()[1].instance_id in drawn, "with all of them out one comes twice"


def test_quarantine_holds_to_the_last_task() -> None:
    tasks = tasks_of_levels(per_level=1)
    order = make_order(tasks)
    for task in tasks[1:]:
        order.quarantine(task.instance_id)
    for _ in range(20):
        assert order.draw()[1] == tasks[0]
    order.quarantine(tasks[0].instance_id)
    assert order.coming(3) == ()
    with pytest.raises(TaskError, match="all 5 tasks are in quarantine"):
        order.draw()


def test_a_group_without_rewards_teaches_nothing() -> None:
    order = make_order()
    position, task = order.draw()
    order.note(position, task.instance_id, solved=0, attempts=0)
    assert order.tries == ()
    assert order.draws == ()


@pytest.mark.parametrize("stated", [None, True, "hard", 7, -1, 1.5, 0.0, 1.0, float("nan")])
def test_rows_may_state_anything(stated: object) -> None:
    task = dataclasses.replace(make_task(), row={"difficulty": stated})
    order = make_order([task])
    assert order.draw()[1] == task
    assert 0 < order.chance(task.instance_id) < 1


def scripted(task: Task, number: int) -> ScriptedEpisode:
    """Easy ones solved, hard ones not, the others now and then; who is first is chance."""
    solved = level(task) < 3 or (level(task) == 3 and number % 2 == 0)
    return ScriptedEpisode(
        outcome=Outcome.SOLVED if solved else Outcome.UNSOLVED,
        delay_s=random.Random().random() * 0.004,
    )


async def steps_of(
    state: SchedulerState, num_steps: int
) -> tuple[list[list[tuple[int, str]]], SchedulerState]:
    """What some steps of a run use up, and the state that a checkpoint keeps after them."""
    gateway = FakeGateway()
    scheduler = RolloutScheduler(
        collector=RolloutCollector(
            FakeEnvironment(gateway, scripted), gateway, sampling=SamplingSection()
        ),
        order=make_order(state=state),
        section=RolloutsSection(groups_per_step=3, group_size=4),
        run="run",
        concurrency=100,
        pending=state.pending,
    )
    steps = []
    async with scheduler:
        for _ in range(num_steps):
            batch = await scheduler.next_batch(0)
            steps.append([(j.whole.task_index, j.whole.instance_id) for j in batch.judged])
        wire = json.loads(json.dumps(Progress(scheduler=scheduler.state).to_wire()))
    return steps, Progress.from_wire(wire).scheduler


async def test_a_run_that_is_cut_anywhere_draws_what_a_whole_one_draws() -> None:
    whole, _ = await steps_of(SchedulerState(), 8)
    assert any(len(step) > 3 for step in whole), "no group was dropped and replaced"
    for cut in range(1, 8):
        first, state = await steps_of(SchedulerState(), cut)
        rest, _ = await steps_of(state, 8 - cut)
        assert [*first, *rest] == whole, f"cut after step {cut}"
