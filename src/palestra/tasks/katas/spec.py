"""What a ``katas:`` source asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import parse_qsl

from palestra.errors import TaskError

PREFIX = "katas:"
LEVELS = (0, 1, 2, 3, 4)
DEFAULT_NUM_TASKS = 256
DEFAULT_LEVEL = 1

Split = Literal["train", "heldout"]

_KEYS = ("seed", "n", "level", "levels")
_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class KataSpec:
    """``num_tasks`` katas of a split, the levels taking turns.

    A kata is fixed by split, seed, level and its number within these: a longer
    source begins with the shorter one, and equal ids are equal tasks.
    """

    split: Split
    seed: int = 0
    num_tasks: int = DEFAULT_NUM_TASKS
    levels: tuple[int, ...] = (DEFAULT_LEVEL,)

    @property
    def name(self) -> str:
        """The spec as it is written."""
        levels = ",".join(map(str, self.levels))
        return f"{PREFIX}{self.split}?seed={self.seed}&n={self.num_tasks}&levels={levels}"

    @classmethod
    def parse(cls, text: str) -> KataSpec:
        """Read ``katas:SPLIT?seed=0&n=2000&level=1`` or ``…&levels=0-3``.

        Raises:
            TaskError: the split, a key or a value is unknown.
        """
        split, _, query = text.removeprefix(PREFIX).partition("?")
        if split not in ("train", "heldout"):
            raise TaskError(f"{text}: the split is {split!r}", hint="katas:train or katas:heldout")
        values: dict[str, str] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key not in _KEYS:
                raise TaskError(f"{text}: unknown key {key!r}", hint=f"known: {', '.join(_KEYS)}")
            if key in values:
                raise TaskError(f"{text}: {key} is given twice")
            values[key] = value
        if "level" in values and "levels" in values:
            raise TaskError(f"{text}: both level and levels are given")
        spec = cls(
            split=cast("Split", split),
            seed=_number(text, "seed", values.get("seed", "0")),
            num_tasks=_number(text, "n", values.get("n", str(DEFAULT_NUM_TASKS))),
            levels=_levels(text, values.get("levels") or values.get("level") or str(DEFAULT_LEVEL)),
        )
        if spec.num_tasks == 0:
            raise TaskError(f"{text}: n is 0")
        return spec


def _number(text: str, key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise TaskError(f"{text}: {key}={value!r} is not a whole number from 0 on")
    return int(value)


def _levels(text: str, value: str) -> tuple[int, ...]:
    span = _RANGE.fullmatch(value)
    if span:
        levels = tuple(range(int(span[1]), int(span[2]) + 1))
    else:
        levels = tuple(_number(text, "level", part) for part in value.split(","))
    if not levels or any(level not in LEVELS for level in levels):
        raise TaskError(f"{text}: level {value!r}", hint="levels are 0 to 4, a range is 0-3")
    if len(set(levels)) != len(levels):
        raise TaskError(f"{text}: a level is given twice")
    return levels
