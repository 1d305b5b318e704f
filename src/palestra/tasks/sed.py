"""Edits of files as ``sed`` commands, as short as they can be."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LineEdit:
    """Lines of a file and what comes in their place.

    Attributes:
        start: number of the first line that goes, or before which the others come; from 1.
        old: the lines that go.
        new: the lines that come.
    """

    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]


def sed(path: str, edits: Sequence[LineEdit]) -> str:
    """The command that makes all ``edits`` of a file; numbers are those before any of them."""
    # GNU sed counts lines of its input, so one edit does not move the next.
    script = "\n".join(_expression(edit) for edit in sorted(edits, key=lambda one: one.start))
    return f"sed -i {single_quoted(script)} {shlex.quote(path)}"


def _expression(edit: LineEdit) -> str:
    last = edit.start + len(edit.old) - 1
    lines = f"{edit.start}" if last <= edit.start else f"{edit.start},{last}"
    if len(edit.old) == len(edit.new) == 1:
        for part, instead in fragments(edit.old[0], edit.new[0]):
            if edit.old[0].replace(part, instead, 1) == edit.new[0]:
                return f"{edit.start}s/{pattern(part)}/{replacement(instead)}/"
    if not edit.new:
        return f"{lines}d"
    if edit.old:
        return f"{lines}c\\\n{_text(edit.new)}"
    # Behind the line before, since behind the last line of a file there is no line.
    return f"{f'{edit.start - 1}a' if edit.start > 1 else '1i'}\\\n{_text(edit.new)}"


def _text(lines: Sequence[str]) -> str:
    """Lines behind ``c`` or ``i``, each but the last ending in a backslash."""
    # A backslash keeps the blanks that a line begins with.
    escaped = [line.replace("\\", "\\\\") for line in lines]
    kept = [f"\\{line}" if line[:1].isspace() else line for line in escaped]
    return "\\\n".join(kept)


def fragments(old: str, new: str) -> list[tuple[str, str]]:
    """What to replace by what, from the words that differ to the whole line."""
    before, after = old.split(" "), new.split(" ")
    shortest = min(len(before), len(after))
    start = 0
    while start < shortest and before[start] == after[start]:
        start += 1
    end = 0
    while end < shortest - start and before[-1 - end] == after[-1 - end]:
        end += 1
    found = []
    for lead, tail in ((start, end), (max(start - 1, 0), end), (start, max(end - 1, 0))):
        part, replacement = (" ".join(w[lead : len(w) - tail]) for w in (before, after))
        spaces = (" " if lead else "", " " if tail else "")
        if part.strip():
            found.append((part.join(spaces), replacement.join(spaces)))
    return found


def pattern(text: str) -> str:
    """``text`` as a basic regular expression between slashes."""
    return re.sub(r"([\\/.*\[\]^$])", r"\\\1", text)


def replacement(text: str) -> str:
    """``text`` as what ``s`` puts in."""
    return re.sub(r"([\\/&])", r"\\\1", text)


def single_quoted(text: str) -> str:
    """``text`` as one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"
