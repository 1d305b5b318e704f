"""How likely an attempt is thought to solve a task, from the difficulty that its row states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUM_LEVELS = 5
PRIOR_SOLVE_RATES = (0.9, 0.7, 0.5, 0.3, 0.1)
"""What share of attempts is thought to solve a task of each level before any was made."""
PRIOR_ATTEMPTS = 4.0
"""How many attempts that thought is worth."""

_UNKNOWN = 3


def level_of(row: Mapping[str, Any]) -> int:
    """The level of a task, 1 (easy) to 5, from its row's field ``difficulty``.

    A whole number is a level. A fraction from 0 to 1 is a difficulty, and the share of
    attempts that fail is thought to be as large. Anything else, or nothing, is the middle.
    """
    stated = row.get("difficulty")
    if isinstance(stated, bool):
        return _UNKNOWN
    if isinstance(stated, int):
        return min(max(stated, 1), NUM_LEVELS)
    if isinstance(stated, float) and 0 <= stated <= 1:
        return nearest_level(1 - stated)
    return _UNKNOWN


def nearest_level(solve_rate: float) -> int:
    """The level whose thought solve rate is nearest, the harder one of two."""
    levels = range(NUM_LEVELS, 0, -1)
    return min(levels, key=lambda level: round(abs(PRIOR_SOLVE_RATES[level - 1] - solve_rate), 9))
