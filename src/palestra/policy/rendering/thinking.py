"""Thinking at the beginning of an answer, between ``<think>`` and ``</think>``."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


def split_thought(text: str) -> tuple[str | None, str]:
    """The thinking and what follows it.

    Only an answer that begins with ``<think>`` thinks; one that was cut in the middle of
    it has no content.
    """
    opened = text.lstrip()
    if not opened.startswith(_OPEN):
        return None, text
    thought, _, content = opened.removeprefix(_OPEN).partition(_CLOSE)
    return thought.strip("\n"), content.lstrip("\n")


def write_thought(thought: str | None) -> str:
    """The beginning of an answer that holds ``thought``; nothing without any."""
    return f"{_OPEN}\n{thought}\n{_CLOSE}\n\n" if thought else ""
