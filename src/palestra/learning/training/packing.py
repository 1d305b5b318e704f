"""Which rows go through the model together, and what they share.

The rows of a group begin alike: the same issue, mostly the same first look. A prefix that
all rows of a microbatch share goes through the model once, and each row continues from
it, so the work is that of the tree of the group and not of its paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from palestra.learning.training.balancing import deal

MIN_SAVED_SHARE = 0.25
"""Below this share of a group's ids, rows pack better without their prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Rows of one microbatch, and how many of their first ids are the same in all of them."""

    rows: tuple[int, ...]
    num_shared: int = 0


def plan_packs(
    ids: Sequence[tuple[int, ...]], groups: Sequence[str], *, max_tokens: int
) -> list[Pack]:
    """Cut rows into microbatches of at most ``max_tokens`` padded ids.

    A row that is longer than ``max_tokens`` has a microbatch of its own.

    Args:
        ids: of each row.
        groups: of each row; only neighbours of one group share a prefix, "" shares none.
        max_tokens: of one microbatch, the shared prefix counted once.

    Returns:
        Packs that hold each row exactly once.
    """
    packs: list[Pack] = []
    alone: list[int] = []
    for group, members in groupby(range(len(ids)), key=lambda index: groups[index]):
        rows = list(members)
        shared = shared_prefix([ids[row] for row in rows]) if group else 0
        if not shared:
            alone += rows
            continue
        rests = pack([len(ids[row]) - shared for row in rows], max_tokens=max_tokens - shared)
        packs += [Pack(rows=tuple(rows[i] for i in rest), num_shared=shared) for rest in rests]
    rests = pack([len(ids[row]) for row in alone], max_tokens=max_tokens)
    return packs + [Pack(rows=tuple(alone[i] for i in rest)) for rest in rests]


def plan_streams(
    ids: Sequence[tuple[int, ...]], groups: Sequence[str], *, max_tokens: int, num_ranks: int = 1
) -> list[list[list[Pack]]]:
    """Deal rows out to the microbatches of ranks, to be laid one behind the other.

    A microbatch has at most ``max_tokens`` ids, shared prefixes counted once, unless a single
    row has more.

    Args:
        ids: of each row.
        groups: of each row; only neighbours of one group share a prefix, "" shares none.
        max_tokens: of one microbatch.
        num_ranks: how many ranks there are; all have equally many microbatches.

    Returns:
        By rank, by microbatch: packs, which hold each row exactly once. Where ranks outnumber
        what is left to deal, one microbatch of some of them is empty.
    """
    packs: list[Pack] = []
    for group, members in groupby(range(len(ids)), key=lambda index: groups[index]):
        rows = list(members)
        shared = shared_prefix([ids[row] for row in rows]) if group else 0
        if not shared:
            packs += [Pack(rows=(row,)) for row in rows]
            continue
        rests = [len(ids[row]) - shared for row in rows]
        (parts,) = deal(rests, max_size=max(1, max_tokens - shared))
        packs += [
            Pack(rows=tuple(rows[i] for i in part), num_shared=shared if len(part) > 1 else 0)
            for part in parts
        ]
    sizes = [pack_size(pack, [len(row) for row in ids]) for pack in packs]
    ranks = deal(sizes, max_size=max_tokens, num_ranks=num_ranks)
    return [[[packs[i] for i in part] for part in rank] for rank in ranks]


def pack_size(pack: Pack, lengths: Sequence[int]) -> int:
    """Ids of a pack without padding, its shared prefix counted once."""
    return pack.num_shared + sum(lengths[row] - pack.num_shared for row in pack.rows)


def shared_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """How many first ids rows should share: 0 where that saves little."""
    shared = common_prefix(rows) if len(rows) > 1 else 0
    saved = shared * (len(rows) - 1)
    return shared if saved >= max(1, MIN_SAVED_SHARE * sum(map(len, rows))) else 0


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """How many first ids are the same in all rows; each row keeps at least one for itself."""
    first, last = min(rows), max(rows)  # what these two share, all between them share
    longest = min(map(len, rows)) - 1
    for place in range(longest):
        if first[place] != last[place]:
            return place
    return longest


def pack(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Cut rows into microbatches of at most ``max_tokens`` padded ids, longest rows first.

    A row that is longer than ``max_tokens`` has a microbatch of its own.

    Returns:
        Indices into ``lengths``, each exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        # The first row of a microbatch is its longest, so it sets the padded width.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
