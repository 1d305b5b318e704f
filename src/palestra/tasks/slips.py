"""Wrong edits that look like right ones: one thing of a line, swapped for a near one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"\s*(?:@|def |class |import |from |\"\"\"|#)")
# What a hasty reader would try; each is tried in both directions.
_SWAPS = (
    (" < ", " <= "),
    (" > ", " >= "),
    (" < ", " > "),
    (" + ", " - "),
    (" * ", " + "),
    (" // ", " / "),
    (" == ", " != "),
    (" and ", " or "),
    ("[0]", "[1]"),
    ("[-1]", "[0]"),
    ("[1:]", "[:1]"),
    (" 0", " 1"),
    (" 1", " 2"),
    ("min(", "max("),
    (" not in ", " in "),
    (" is not ", " is "),
    ("if not ", "if "),
    ("append(", "extend("),
    ("True", "False"),
)


class LineChange(NamedTuple):
    """A line and what comes in its place; ``number`` counts from 1."""

    number: int
    old: str
    new: str


def swapped(line: str) -> Iterator[str]:
    """The line with one thing swapped; nothing where it defines, imports or explains."""
    if _HEAD.match(line):
        return
    for pair in _SWAPS:
        for old, new in (pair, pair[::-1]):
            if old in line:
                yield line.replace(old, new, 1)
