"""Keys and values of finished sequences, for the next turn of the same conversation."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from palestra.policy.engines.request import Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    ids: Ids
    kv: Tensor  # [2, layers, heads, ids, head_dim]


class PrefixCache:
    """The most recently used paths, at most ``max_ids`` ids in all.

    Args:
        max_ids: bound of the memory; 0 keeps nothing.
    """

    def __init__(self, max_ids: int) -> None:
        self._max_ids = max_ids
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # the oldest first
        self._next_key = 0
        self._num_ids = 0

    @property
    def num_ids(self) -> int:
        """Ids whose keys and values are held."""
        return self._num_ids

    def longest(self, ids: Ids) -> tuple[int, Tensor | None]:
        """The longest known beginning of ``ids``: its length, and its keys and values."""
        best, length = None, 0
        for key, entry in self._entries.items():
            common = common_length(entry.ids, ids)
            if common > length:
                best, length = key, common
        if best is None:
            return 0, None
        self._entries.move_to_end(best)
        return length, self._entries[best].kv[:, :, :, :length]

    def wants(self, ids: Ids) -> bool:
        """Whether storing ``ids`` would fit and add something."""
        if not 0 < len(ids) <= self._max_ids:
            return False
        return all(common_length(e.ids, ids) < len(ids) for e in self._entries.values())

    def store(self, ids: Ids, kv: Tensor) -> None:
        """Keep a path that :meth:`wants` let in; what it extends or displaces goes."""
        for key, entry in list(self._entries.items()):
            if common_length(entry.ids, ids) == len(entry.ids):
                self._drop(key)
        while self._entries and self._num_ids + len(ids) > self._max_ids:
            self._drop(next(iter(self._entries)))
        self._entries[self._next_key] = _Entry(ids=ids, kv=kv)
        self._next_key += 1
        self._num_ids += len(ids)

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        self._entries.clear()
        self._num_ids = 0

    def _drop(self, key: int) -> None:
        self._num_ids -= len(self._entries.pop(key).ids)


def common_length(a: Ids, b: Ids) -> int:
    """How many ids two sequences share from their start."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    first = int(different.argmax()) if n else 0
    return first if n and different[first] else n


def as_ids(ids: list[int]) -> Ids:
    """Ids as an array."""
    return np.asarray(ids, dtype=np.int64)
