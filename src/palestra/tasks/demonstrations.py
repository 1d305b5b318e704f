"""What an expert who knows the fix says and does: look, edit, check, hand in.

For tasks of any kind, from their gold patch. Katas have shorter ones of their own
(:mod:`palestra.tasks.katas.expert`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from unidiff import PatchSet
from unidiff.errors import UnidiffParseError

from palestra.errors import TaskError
from palestra.records import Task
from palestra.tasks.sed import LineEdit, sed

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
_MARGIN = 8
_DEFINED = re.compile(r"(?:def|class)\s+(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn of an expert: what is thought, and the command."""

    thought: str
    command: str


def expert_steps(task: Task) -> tuple[Step, ...]:
    """The turns in which an expert solves ``task``.

    Raises:
        TaskError: its gold patch cannot be read.
    """
    try:
        files = PatchSet(task.gold_patch)
    except UnidiffParseError as error:
        raise TaskError(f"{task.instance_id}: its gold patch is no diff: {error}") from None
    if not files:
        raise TaskError(f"{task.instance_id}: its gold patch is empty")
    steps = [Step(thought="First I look at what is there.", command="git status --short; ls")]
    for file in files:
        steps += _on_file(file)
    steps.append(Step(thought="I check what I have changed.", command="git diff"))
    steps.append(Step(thought="The change is what I wanted, so I hand it in.", command=SUBMIT))
    return tuple(steps)


def _on_file(file: PatchSet) -> Iterator[Step]:
    path = shlex.quote(file.path)
    edits = [edit for hunk in file for edit in _edits(hunk)]
    # sed has no way to write an empty line last.
    if not file.is_modified_file or any(edit.new[-1:] == ("",) for edit in edits):
        yield Step(
            thought=f"{file.path} has to be written as a whole.",
            command=f"git apply <<'END_OF_PATCH'\n{file}END_OF_PATCH",
        )
        return
    names = list(dict.fromkeys(name for hunk in file for name in _defined(hunk)))
    if names:
        found = " ".join(f"-e '{name}'" for name in names)
        yield Step(
            thought=f"The issue leads to {' and '.join(names)}. I find out where that is.",
            command=f"grep -rn --include='*.py' {found} . | head -n 20",
        )
    for hunk in file:
        first = max(1, hunk.source_start - _MARGIN)
        last = hunk.source_start + hunk.source_length + _MARGIN
        yield Step(
            thought=f"I read the code around line {hunk.source_start} of {file.path}.",
            command=f"nl -ba {path} | sed -n '{first},{last}p'",
        )
    lines = ", ".join(str(edit.start) for edit in edits)
    yield Step(thought=f"Line {lines} is wrong. I correct it.", command=sed(file.path, edits))


def _edits(hunk: PatchSet) -> Iterator[LineEdit]:
    """The runs of changed lines of a hunk."""
    old: list[str] = []
    new: list[str] = []
    number = start = hunk.source_start
    for line in [*hunk, None]:
        if line is not None and line.is_removed:
            old.append(line.value.rstrip("\n"))
            number += 1
        elif line is not None and line.is_added:
            new.append(line.value.rstrip("\n"))
        elif line is None or line.is_context:
            if old or new:
                yield LineEdit(start=start, old=tuple(old), new=tuple(new))
            old, new = [], []
            number += 1
            start = number


def _defined(hunk: PatchSet) -> list[str]:
    """Functions and classes around or in the hunk."""
    shown = [hunk.section_header, *(line.value for line in hunk if line.is_context)]
    return [match[1] for text in shown if (match := _DEFINED.search(text or ""))][:2]
