"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much it matters."""

    GOOD = "good"
    NOTE = "note"
    """Works without; says what is given up."""
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what it was, such as ``docker``.
        level: how much it matters.
        seen: what was found, in one line.
        advice: what to do; empty where nothing is to be done.
    """

    about: str
    level: Level
    seen: str
    advice: str = ""


def good(about: str, seen: str) -> Finding:
    """Nothing to do."""
    return Finding(about=about, level=Level.GOOD, seen=seen)


def note(about: str, seen: str, advice: str) -> Finding:
    """It works without."""
    return Finding(about=about, level=Level.NOTE, seen=seen, advice=advice)


def bad(about: str, seen: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(about=about, level=Level.BAD, seen=seen, advice=advice)
