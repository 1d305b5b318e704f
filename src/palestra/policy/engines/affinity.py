"""Which server a conversation goes on at, so that its keys and values are there already."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

TAIL = 64


@dataclass(frozen=True, slots=True)
class _End:
    length: int
    tail: tuple[int, ...]


class Affinity:
    """Remembers where each conversation was answered last, by the ids that it came to.

    The next prompt of a conversation begins with its last prompt and what was sampled, id for
    id, so nobody has to say which conversation a prompt is of. A conversation is known by the
    length of that beginning and the last ids of it. Two that are equal in both are taken for
    one, which costs at most a prefix that is computed anew.

    Args:
        max_conversations: the one that nobody went on with for longest is forgotten.
    """

    def __init__(self, max_conversations: int = 2048) -> None:
        self._max_conversations = max_conversations
        self._places: OrderedDict[_End, str] = OrderedDict()
        self._num_of_length: dict[int, int] = {}
        self._lengths: list[int] = []  # its keys, in order

    def __len__(self) -> int:
        return len(self._places)

    def find(self, ids: Sequence[int]) -> str | None:
        """Where the longest known beginning of ``ids`` was answered."""
        end = self._find(ids)
        return None if end is None else self._places[end]

    def note(self, prompt_ids: Sequence[int], ids: Sequence[int], place: str) -> None:
        """Remember that ``prompt_ids`` were answered at ``place`` and came to ``ids``."""
        before = self._find(prompt_ids)
        if before is not None:
            self._forget(before)
        end = _End(len(ids), tuple(ids[-TAIL:]))
        if end in self._places:
            self._forget(end)
        self._places[end] = place
        if end.length not in self._num_of_length:
            insort(self._lengths, end.length)
        self._num_of_length[end.length] = self._num_of_length.get(end.length, 0) + 1
        if len(self._places) > self._max_conversations:
            self._forget(next(iter(self._places)))

    def leave(self, place: str) -> None:
        """Forget all conversations of a place that is gone."""
        for end in [end for end, at in self._places.items() if at == place]:
            self._forget(end)

    def _find(self, ids: Sequence[int]) -> _End | None:
        # From the longest on: what a conversation came to is near the end of its next prompt.
        for at in range(bisect_right(self._lengths, len(ids)) - 1, -1, -1):
            length = self._lengths[at]
            end = _End(length, tuple(ids[max(0, length - TAIL) : length]))
            if end in self._places:
                return end
        return None

    def _forget(self, end: _End) -> None:
        del self._places[end]
        left = self._num_of_length[end.length] - 1
        if left:
            self._num_of_length[end.length] = left
        else:
            del self._num_of_length[end.length]
            del self._lengths[bisect_left(self._lengths, end.length)]
