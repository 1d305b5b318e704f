"""What a scripted expert does with a task: look, edit, hand in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from palestra.errors import TaskError
from palestra.records import Task
from palestra.tasks.sed import fragments, pattern, replacement, single_quoted
from palestra.tasks.slips import LineChange

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"

_HUNK = re.compile(r"^@@ -(\d+)")


def demonstration(task: Task) -> tuple[str, ...]:
    """The bash commands that solve ``task``: one that looks, one that edits, one that submits.

    A fix of one line becomes a ``sed -i``, as short as it can be; any other fix
    is the gold patch, applied.

    Raises:
        TaskError: the task does not carry its repository.
    """
    path, before = patched_file(task)
    return (f"cat {shlex.quote(path)}", fix(task, path, before), SUBMIT)


def patched_file(task: Task) -> tuple[str, list[str]]:
    """The file that the gold patch changes, and its lines.

    Raises:
        TaskError: the task does not carry its repository.
    """
    texts = {file.path: file.text for file in task.files}
    path = _patched_path(task)
    if path not in texts:
        raise TaskError(f"{task.instance_id}: no demonstration without the text of {path}")
    return path, texts[path].splitlines()


def fix(task: Task, path: str, before: Sequence[str]) -> str:
    """The command that does what the gold patch does to the file ``path``."""
    change = one_line_change(task.gold_patch)
    if change is None:
        return f"git apply <<'END_OF_PATCH'\n{task.gold_patch}END_OF_PATCH"
    return edit(path, before, change)


def _patched_path(task: Task) -> str:
    for line in task.gold_patch.splitlines():
        if line.startswith("--- a/"):
            return line.removeprefix("--- a/")
    raise TaskError(f"{task.instance_id}: its gold patch names no file")


def edit(path: str, before: Sequence[str], change: LineChange) -> str:
    """The command that puts one line in the place of another, as short as it can be.

    Args:
        path: of the file.
        before: its lines.
        change: of one of them.
    """
    number, old, new = change
    wanted = [*before[: number - 1], new, *before[number:]]
    for part, instead in fragments(old, new):
        expression = f"s/{pattern(part)}/{replacement(instead)}/"
        if [line.replace(part, instead, 1) for line in before] == wanted:
            return f"sed -i {single_quoted(expression)} {shlex.quote(path)}"
        if old.replace(part, instead, 1) == new:
            return f"sed -i {single_quoted(f'{number}{expression}')} {shlex.quote(path)}"
    expression = f"{number}s/.*/{replacement(new)}/"
    return f"sed -i {single_quoted(expression)} {shlex.quote(path)}"


def one_line_change(patch: str) -> LineChange | None:
    """What a patch changes that replaces one line; else ``None``."""
    removed: list[tuple[int, str]] = []
    added: list[str] = []
    number = 0
    for line in patch.splitlines():
        hunk = _HUNK.match(line)
        if hunk:
            number = int(hunk[1])
        elif number and line.startswith("-"):
            removed.append((number, line[1:]))
            number += 1
        elif number and line.startswith("+"):
            added.append(line[1:])
        elif number:
            number += 1
    if len(removed) == len(added) == 1:
        (number, old), new = removed[0], added[0]
        return LineChange(number=number, old=old, new=new)
    return None
