from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palestra.learning.training.balancing import deal, partition

SIZES = st.lists(st.integers(1, 60), max_size=24)


def test_partition_by_hand() -> None:
    # The differencing method on 8, 7, 6, 5, 4: 8-7, 6-5 → 1, 1, 4 → 4-1 → 3-1 = 2: 16 against 14.
    parts = partition([8, 7, 6, 5, 4], 2)
    sums = [sum([8, 7, 6, 5, 4][i] for i in part) for part in parts]
    assert sums == [16, 14]
    assert partition([5], 3) == [[0], [], []]
    assert partition([], 2) == [[], []]


@pytest.mark.parametrize(("sizes", "parts"), [([0], 1), ([-1, 2], 2), ([1], 0)])
def test_partition_refuses_what_has_no_meaning(sizes: list[int], parts: int) -> None:
    with pytest.raises(ValueError, match=r"positive|num_parts"):
        partition(sizes, parts)


@given(sizes=SIZES, num_parts=st.integers(1, 8))
def test_partition_loses_nothing_and_is_even(sizes: list[int], num_parts: int) -> None:
    parts = partition(sizes, num_parts)
    assert len(parts) == num_parts
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    sums = [sum(sizes[i] for i in part) for part in parts]
    assert sums == sorted(sums, reverse=True)
    assert not sizes or sums[0] - sums[-1] <= max(sizes), "no move of one size would help"
    assert sum(not part for part in parts) == max(0, num_parts - len(sizes))


@given(sizes=SIZES, max_size=st.integers(1, 100), num_ranks=st.integers(1, 4))
def test_deals_lose_nothing_and_stay_within_bounds(
    sizes: list[int], max_size: int, num_ranks: int
) -> None:
    ranks = deal(sizes, max_size=max_size, num_ranks=num_ranks)
    assert len(ranks) == num_ranks
    assert len({len(rank) for rank in ranks}) == 1, "ranks would wait for each other for ever"
    flat = [part for rank in ranks for part in rank]
    assert sorted(i for part in flat for i in part) == list(range(len(sizes)))
    for part in flat:
        assert len(part) < 2 or sum(sizes[i] for i in part) <= max_size
    if sizes:
        num_idle = sum(not part for part in flat)
        assert num_idle < num_ranks, "a rank that waits for nobody has something to do"


def test_ranks_hold_about_the_same_at_every_step() -> None:
    sizes = [(n * 7919) % 900 + 100 for n in range(200)]
    ranks = deal(sizes, max_size=4096, num_ranks=4)
    for parts in zip(*ranks, strict=True):
        sums = [sum(sizes[i] for i in part) for part in parts]
        assert max(sums) <= 1.01 * min(sums)
    totals = [sum(sizes[i] for part in rank for i in part) for rank in ranks]
    assert max(totals) <= 1.01 * min(totals)
    assert len(ranks[0]) <= 1.1 * sum(sizes) / (4 * 4096) + 1, "microbatches are well filled"
