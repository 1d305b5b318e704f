"""Demonstrations by trial and error: an edit, what the failing call says then, another edit.

An expert who is always right shows a policy no way out of a wrong edit. Here some edits are
wrong on purpose; the call of the issue tells, the file is brought back, and it goes on. What
is wrong on purpose is marked, so that nobody is fitted to it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from palestra.records import Task
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.expert import SUBMIT, edit, fix, one_line_change, patched_file
from palestra.tasks.slips import LineChange, swapped

_CALL = re.compile(
    r"`(?P<name>\w+)` in (?P<module>\w+)\.py goes wrong\n\n```python\n(?P<call>[^\n]+)\n```\n\n"
    r"It (?:returns|raises) `"
)
_HUNK, _CONTEXT = re.compile(r"^@@ -(\d+)", re.MULTILINE), 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One command of a demonstration.

    Attributes:
        command: for bash.
        is_slip: whether it is wrong on purpose.
    """

    command: str
    is_slip: bool = False


def tried_demonstration(task: Task, *, num_slips: int, draw: Draw) -> tuple[Move, ...]:
    """Commands that look, edit, run the failing call, and submit when it says what it should.

    Args:
        task: a kata.
        num_slips: wrong edits before the right one; fewer where the file offers no more, none
            where the issue names no call.
        draw: chooses them.

    Raises:
        TaskError: the task does not carry its repository.
    """
    path, before = patched_file(task)
    look, submit = Move(command=f"cat {shlex.quote(path)}"), Move(command=SUBMIT)
    mend = Move(command=fix(task, path, before))
    call = _failing_call(task.problem_statement)
    if call is None:
        return (look, mend, submit)
    check = Move(command=call)
    undo = Move(command=f"git checkout {shlex.quote(path)}")
    moves = [look]
    for change in draw.sample(list(_wrong_changes(task, before)), num_slips):
        moves += [Move(command=edit(path, before, change), is_slip=True), check, undo]
    return (*moves, mend, check, submit)


def _failing_call(statement: str) -> str | None:
    match = _CALL.match(statement)
    if match is None:
        return None
    name, module, call = match["name"], match["module"], match["call"]
    return f"python3 -B - <<'END'\nfrom {module} import {name}\nprint(repr({call}))\nEND"


def _wrong_changes(task: Task, before: Sequence[str]) -> Iterator[LineChange]:
    """Changes in the faulty function that are not what the fix is."""
    right = one_line_change(task.gold_patch)
    for number in _faulty_function(task, before):
        for new in swapped(before[number - 1]):
            change = LineChange(number=number, old=before[number - 1], new=new)
            if change != right:
                yield change


def _faulty_function(task: Task, before: Sequence[str]) -> range:
    """Numbers of the lines between the definitions around the fix."""
    start = _HUNK.search(task.gold_patch)
    within = int(start[1]) + _CONTEXT if start else 1
    defined = [number for number, line in enumerate(before, 1) if line.startswith("def ")]
    first = max((number for number in defined if number <= within), default=1)
    last = min((number for number in defined if number > within), default=len(before) + 1)
    return range(first, last)
