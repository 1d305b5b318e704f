from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palestra.config import reported_ks
from palestra.learning.metrics import wilson_interval
from palestra.learning.pass_at_k import (
    TaskTries,
    pass_at_k,
    reported_pass_at_k,
    solve_rate,
    tries_by_task,
)


def tries(*counts: tuple[int, int]) -> list[TaskTries]:
    return [TaskTries(solved=solved, graded=graded) for solved, graded in counts]


def test_pass_at_k_by_hand() -> None:
    # 1 - C(3, 2) / C(5, 2) = 0.7, and a task that nobody solved.
    found = pass_at_k(tries((2, 5), (0, 5)), 2)
    assert found is not None
    assert found.share == pytest.approx(0.35)
    assert found.num_tasks == 2
    first = pass_at_k(tries((2, 5), (0, 5)), 1)
    assert first is not None
    assert first.share == pytest.approx(0.2)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_all_choices_of_k_tries(solved: list[bool], k: int) -> None:
    found = pass_at_k(tries((sum(solved), len(solved))), k)
    if k > len(solved):
        assert found is None, "of fewer than k tries nothing unbiased can be said"
        return
    chosen = [any(choice) for choice in itertools.combinations(solved, k)]
    assert found is not None
    assert found.share == pytest.approx(sum(chosen) / len(chosen))


def test_failed_tries_are_no_tries_and_take_their_task_out_only_where_too_few_are_left() -> None:
    rewards = [("a", 1.0), ("a", None), ("b", 0.0), ("b", 1.0), ("c", None), ("c", None)]
    by_task = tries_by_task(rewards)
    assert by_task == tuple(tries((1, 1), (1, 2)))
    once, twice = (pass_at_k(by_task, k) for k in (1, 2))
    assert once is not None
    assert twice is not None
    assert (once.share, once.num_tasks) == (0.75, 2)
    assert (twice.share, twice.num_tasks) == (1.0, 1)
    rate = solve_rate(by_task)
    assert rate is not None
    assert rate.share == pytest.approx(2 / 3)
    assert solve_rate([]) is None
    with pytest.raises(ValueError, match="pass@0"):
        pass_at_k(by_task, 0)


@pytest.mark.parametrize(
    ("attempts", "ks"), [(1, ()), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_which_ks_are_reported(attempts: int, ks: tuple[int, ...]) -> None:
    assert reported_ks(attempts) == ks
    assert tuple(reported_pass_at_k(tries((1, attempts)), attempts)) == ks


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_with_one_try_a_task_the_interval_is_wilsons(solved: list[bool]) -> None:
    found = solve_rate(tries(*((int(one), 1) for one in solved)))
    expected = wilson_interval(sum(solved), len(solved))
    assert found is not None
    assert expected is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("solved", [0, 8])
def test_where_all_tries_end_alike_a_task_counts_once(solved: int) -> None:
    found, expected = solve_rate(tries(*[(solved, 8)] * 10)), wilson_interval(solved and 10, 10)
    assert found is not None
    assert found.interval == expected


def test_intervals_of_tasks_that_differ_hold_the_truth_as_often_as_they_say() -> None:
    """Tries at one task are alike; taken as independent they promise too much."""
    chance = random.Random(7)
    held, naive, held_3 = 0, 0, 0
    for _ in range(400):
        # Half of the tasks are hard, half are easy: 40 % on average, pass@3 of 58.6 %.
        easy = [chance.random() < 0.5 for _ in range(60)]
        counts = tries(
            *((sum(chance.random() < (0.7 if e else 0.1) for _ in range(6)), 6) for e in easy)
        )
        rate, passed = solve_rate(counts), pass_at_k(counts, 3)
        independent = wilson_interval(sum(t.solved for t in counts), 360)
        assert rate is not None
        assert passed is not None
        assert independent is not None
        held += rate.interval.low <= 0.4 <= rate.interval.high
        naive += independent.low <= 0.4 <= independent.high
        truth = 1 - (0.3**3 + 0.9**3) / 2
        held_3 += passed.interval.low <= truth <= passed.interval.high
    assert held / 400 > 0.92
    assert held_3 / 400 > 0.92
    assert naive / 400 < 0.85
