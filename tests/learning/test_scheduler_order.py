from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_makers import make_task, make_tasks

from palestra.errors import TaskError
from palestra.learning.rollouts.task_order import TaskOrder


def test_every_epoch_holds_every_task_once_and_is_shuffled_anew() -> None:
    order = TaskOrder(make_tasks(20), seed=3)
    epochs = [[order.draw()[1].instance_id for _ in range(20)] for _ in range(3)]
    assert all(sorted(epoch) == sorted(t.instance_id for t in make_tasks(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@given(seed=st.integers(0, 9), position=st.integers(0, 100), count=st.integers(1, 7))
def test_a_position_is_all_it_takes_to_go_on(seed: int, position: int, count: int) -> None:
    whole = TaskOrder(make_tasks(count), seed=seed)
    for _ in range(position):
        whole.draw()
    resumed = TaskOrder(make_tasks(count), seed=seed, position=position)
    assert [whole.draw() for _ in range(9)] == [resumed.draw() for _ in range(9)]


def test_a_quarantined_task_is_not_drawn_but_keeps_its_position() -> None:
    order = TaskOrder(make_tasks(3), seed=0, shuffle=False)
    order.quarantine("task-1")
    assert [(i, t.instance_id) for i, t in (order.draw() for _ in range(4))] == [
        (0, "task-0"),
        (2, "task-2"),
        (3, "task-0"),
        (5, "task-2"),
    ]
    assert order.quarantined == ("task-1",)


@given(seed=st.integers(0, 50), left=st.integers(0, 4))
def test_the_last_task_out_of_quarantine_is_always_found(seed: int, left: int) -> None:
    order = TaskOrder(make_tasks(5), seed=seed)
    for number in range(5):
        if number != left:
            order.quarantine(f"task-{number}")
    assert {order.draw()[1].instance_id for _ in range(4)} == {f"task-{left}"}


def test_no_tasks_left_is_said() -> None:
    order = TaskOrder(make_tasks(2), seed=0)
    order.quarantine("task-0")
    order.quarantine("task-1")
    with pytest.raises(TaskError, match="all 2 tasks are in quarantine"):
        order.draw()
    with pytest.raises(TaskError, match="no task"):
        TaskOrder([], seed=0)
    with pytest.raises(TaskError, match="only 1 different"):
        TaskOrder([make_task(), make_task()], seed=0)
