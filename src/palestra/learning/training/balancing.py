"""Sizes dealt out evenly: over parts, and over the microbatches of several ranks."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

_GROWTH = 20  # where parts do not fit, there are a twentieth more


def partition(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Cut indices into parts of nearly equal sums, by the largest differencing method.

    Karmarkar and Karp 1982, *The Differencing Method of Set Partitioning*: the two partitions
    that are most uneven are joined, the large parts of one with the small parts of the other.

    Args:
        sizes: positive.
        num_parts: at least one.

    Returns:
        Indices into ``sizes``, each exactly once, the heaviest part first. Parts are empty only
        where there are fewer sizes than parts.
    """
    if num_parts < 1:
        raise ValueError(f"num_parts is {num_parts}; at least one is needed")
    # Of a partition: its unevenness (negative, for the heap), a tie-break, its parts by weight.
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = []
    for index, size in enumerate(sizes):
        if size < 1:
            raise ValueError(f"size {index} is {size}; sizes must be positive")
        empty: list[tuple[int, list[int]]] = [(0, []) for _ in range(num_parts - 1)]
        heap.append((-size, index, [(size, [index]), *empty]))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, order, first = heapq.heappop(heap)
        _, _, second = heapq.heappop(heap)
        joined = [
            (large[0] + small[0], large[1] + small[1])
            for large, small in zip(first, reversed(second), strict=True)
        ]
        joined.sort(key=lambda part: (-part[0], part[1]))
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], order, joined))
    if not heap:
        return [[] for _ in range(num_parts)]
    return [sorted(indices) for _, indices in heap[0][2]]


def deal(sizes: Sequence[int], *, max_size: int, num_ranks: int = 1) -> list[list[list[int]]]:
    """Deal indices out to the microbatches of ranks, each about equal in size.

    Ranks have equally many microbatches, about as few as hold at most ``max_size`` each; of each
    number, those of all ranks are about the same size, since ranks wait for each other. A single
    size above ``max_size`` has a microbatch of its own. Where ranks outnumber what is left to
    deal, one microbatch of some of them is empty.

    Returns:
        By rank, by microbatch: indices into ``sizes``, each exactly once.
    """
    most = max(1, math.ceil(len(sizes) / num_ranks))
    num_steps = min(most, max(1, math.ceil(_num_bins(sizes, max_size) / num_ranks)))
    parts = partition(sizes, num_steps * num_ranks)
    while num_steps < most and not _fit(parts, sizes, max_size):
        num_steps = min(most, num_steps + 1 + num_steps // _GROWTH)
        parts = partition(sizes, num_steps * num_ranks)
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for step in range(num_steps):
        # The heaviest part of one microbatch goes to the rank that had the lightest before.
        neighbours = parts[step * num_ranks : (step + 1) * num_ranks]
        for rank, part in zip(ranks, neighbours[:: -1 if step % 2 else 1], strict=True):
            rank.append(part)
    return ranks


def _num_bins(sizes: Sequence[int], max_size: int) -> int:
    """How many parts of at most ``max_size`` first-fit decreasing makes; nearly the fewest."""
    free: list[int] = []
    for size in sorted(sizes, reverse=True):
        for place, room in enumerate(free):
            if size <= room:
                free[place] -= size
                break
        else:
            free.append(max_size - size)
    return len(free)


def _fit(parts: list[list[int]], sizes: Sequence[int], max_size: int) -> bool:
    return all(len(part) < 2 or sum(sizes[i] for i in part) <= max_size for part in parts)
