from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palestra.config_training import AdvantageName, OverlongSection
from palestra.learning.training.advantages import (
    group_advantages,
    overlong_penalty,
    shuffled,
    whitened,
)

REWARDS = st.lists(st.none() | st.floats(-10, 10), min_size=1, max_size=12)


def test_hand_worked_without_deviation() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0], estimator="group_mean") == (0.5, -0.5, -0.5, 0.5)


def test_hand_worked_with_deviation() -> None:
    # mean 1/4; sample variance ((3/4)^2 + 3 (1/4)^2) / 3 = 1/4; deviation 1/2
    got = group_advantages([1.0, 0.0, 0.0, 0.0], estimator="group_std")
    assert got == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)


@pytest.mark.parametrize("estimator", get_args(AdvantageName))
def test_unknown_rewards_leave_the_baseline_alone(estimator: AdvantageName) -> None:
    with_unknown = group_advantages([1.0, None, 0.0, None], estimator=estimator)
    known = group_advantages([1.0, 0.0], estimator=estimator)
    assert with_unknown == (known[0], None, known[1], None)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exact_zeros(value: float) -> None:
    # The mean of equal floats may round; divided by 1e-6 that would be a signal.
    assert group_advantages([value] * 7, estimator="group_std") == (0.0,) * 7


def test_a_lone_known_reward_has_no_advantage() -> None:
    assert group_advantages([None, 1.0, None], estimator="group_std") == (None, 0.0, None)
    assert group_advantages([None, None], estimator="group_std") == (None, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, bad], estimator="group_std")


@given(rewards=REWARDS, estimator=st.sampled_from(get_args(AdvantageName)))
def test_against_numpy(rewards: list[float | None], estimator: AdvantageName) -> None:
    got = group_advantages(rewards, estimator=estimator)
    known = np.array([r for r in rewards if r is not None])
    ours = np.array([a for a in got if a is not None])
    assert [a is None for a in got] == [r is None for r in rewards]
    if len(set(known)) < 2:
        assert not ours.any()
        return
    want = known - known.mean()
    if estimator == "group_std":
        want = want / (known.std(ddof=1) + 1e-6)
    elif estimator == "leave_one_out":
        want = np.array([r - np.delete(known, i).mean() for i, r in enumerate(known)])
    np.testing.assert_allclose(ours, want, rtol=1e-7, atol=1e-7)


def test_leave_one_out_by_hand() -> None:
    # Each less the mean of the other three: 1 - 1/3, and 0 - 2/3 twice.
    got = group_advantages([1.0, 1.0, 0.0, 0.0], estimator="leave_one_out")
    assert got == pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3])


# --- over the batch -------------------------------------------------------------


def test_whitening_by_hand_counts_ids_and_not_rows() -> None:
    # Ids 1, 1, 1, -1: mean 1/2, squares 3/4 + 9/4 = 3, variance 3 / 3 = 1.
    assert whitened([1.0, -1.0], [3, 1]) == pytest.approx([0.5, -1.5], rel=1e-5)


@given(
    rows=st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=2, max_size=12),
)
def test_whitening_against_numpy(rows: list[tuple[float, int]]) -> None:
    advantages, counts = [a for a, _ in rows], [n for _, n in rows]
    got = whitened(advantages, counts)
    if len(set(advantages)) < 2:
        assert got == (0.0,) * len(rows), "equal advantages are no signal"
        return
    ids = np.repeat(advantages, counts)
    want = (np.array(advantages) - ids.mean()) / (ids.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


# --- length ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_sampled", "penalty"),
    [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (1000, -1.0)],
)
def test_the_penalty_for_length_by_hand(num_sampled: int, penalty: float) -> None:
    section = OverlongSection(max_tokens=100, buffer=20)
    assert overlong_penalty(num_sampled, section) == pytest.approx(penalty)
    half = OverlongSection(max_tokens=100, buffer=20, penalty=0.5)
    assert overlong_penalty(num_sampled, half) == pytest.approx(0.5 * penalty)


def test_without_a_buffer_the_penalty_is_a_step_and_without_a_limit_there_is_none() -> None:
    section = OverlongSection(max_tokens=10)
    assert [overlong_penalty(n, section) for n in (10, 11)] == [0.0, -1.0]
    assert overlong_penalty(10**9, OverlongSection()) == 0.0


# --- the control ----------------------------------------------------------------


@given(REWARDS, st.text())
def test_shuffled_rewards_are_the_same_ones_where_there_were_some(
    rewards: list[float | None], name: str
) -> None:
    dealt = shuffled(rewards, name=name)
    assert [r is None for r in dealt] == [r is None for r in rewards]
    assert sorted(r for r in dealt if r is not None) == sorted(r for r in rewards if r is not None)
    assert dealt == shuffled(rewards, name=name), "a resumed run must deal as before"


def test_shuffled_rewards_say_nothing_about_the_rollout() -> None:
    rewards = [1.0, 0.0, None, 0.0, 0.0]
    first = [shuffled(rewards, name=f"group {n}")[0] for n in range(2000)]
    assert sum(first) / len(first) == pytest.approx(0.25, abs=0.04)
