"""Random draws that are the same in every process and every version of Python."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Draws from a named stream.

    Only seeding with a string and ``random()`` are promised to stay the same
    across versions of Python, so everything here is built on these two.
    """

    def __init__(self, name: str) -> None:
        self._random = random.Random(name).random

    def below(self, n: int) -> int:
        """A whole number from 0 to ``n - 1``."""
        return int(self._random() * n)

    def number(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def flip(self) -> bool:
        """True half of the time."""
        return self._random() < 0.5

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[self.below(len(items))]

    def weighted(self, items: Mapping[T, float]) -> T:
        """One of ``items``, each with its probability; these sum to one."""
        left = self._random()
        for item, probability in items.items():
            left -= probability
            if left < 0:
                return item
        return item  # the sum fell short of one by rounding

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All ``items`` in a drawn order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(len(rest))]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """``n`` different entries of ``items``."""
        return self.shuffled(items)[:n]

    def numbers(self, min_len: int, max_len: int, low: int = -9, high: int = 20) -> list[int]:
        """A list of whole numbers."""
        return [self.number(low, high) for _ in range(self.number(min_len, max_len))]

    def word(self, min_len: int = 2, max_len: int = 6, letters: str = "abcdeiorst") -> str:
        """A word of small letters."""
        return "".join(self.pick(letters) for _ in range(self.number(min_len, max_len)))

    def words(self, min_len: int, max_len: int) -> list[str]:
        """A list of words."""
        return [self.word() for _ in range(self.number(min_len, max_len))]
