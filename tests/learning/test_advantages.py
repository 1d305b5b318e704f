from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palestra.learning.training.advantages import group_advantages, shuffled

REWARDS = st.lists(st.none() | st.floats(-10, 10), min_size=1, max_size=12)


def test_hand_worked_without_deviation() -> None:
    assert group_advantages([1.0, 0.0, 0.0, 1.0], normalize_std=False) == (0.5, -0.5, -0.5, 0.5)


def test_hand_worked_with_deviation() -> None:
    # mean 1/4; sample variance ((3/4)^2 + 3 (1/4)^2) / 3 = 1/4; deviation 1/2
    got = group_advantages([1.0, 0.0, 0.0, 0.0], normalize_std=True)
    assert got == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_unknown_rewards_leave_the_baseline_alone(normalize_std: bool) -> None:
    with_unknown = group_advantages([1.0, None, 0.0, None], normalize_std=normalize_std)
    known = group_advantages([1.0, 0.0], normalize_std=normalize_std)
    assert with_unknown == (known[0], None, known[1], None)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exact_zeros(value: float) -> None:
    # The mean of equal floats may round; divided by 1e-6 that would be a signal.
    assert group_advantages([value] * 7, normalize_std=True) == (0.0,) * 7


def test_a_lone_known_reward_has_no_advantage() -> None:
    assert group_advantages([None, 1.0, None], normalize_std=True) == (None, 0.0, None)
    assert group_advantages([None, None], normalize_std=True) == (None, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, bad], normalize_std=True)


@given(rewards=REWARDS, normalize_std=st.booleans())
def test_against_numpy(rewards: list[float | None], normalize_std: bool) -> None:
    got = group_advantages(rewards, normalize_std=normalize_std)
    known = np.array([r for r in rewards if r is not None])
    ours = np.array([a for a in got if a is not None])
    assert [a is None for a in got] == [r is None for r in rewards]
    if len(set(known)) < 2:
        assert not ours.any()
        return
    want = known - known.mean()
    if normalize_std:
        want = want / (known.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(ours, want, rtol=1e-7, atol=1e-7)


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
