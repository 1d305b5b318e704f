"""What an expert who knows the fix says and does: look, edit, check, hand in.

For tasks of any kind, from their gold patch. Katas have shorter ones of their own
(:mod:`palestra.tasks.katas.expert`). By trial and error, as there, the expert runs what the
issue shows, and some edits are wrong on purpose, seen to be, and taken back.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from unidiff import PatchSet
from unidiff.errors import UnidiffParseError

from palestra.errors import TaskError
from palestra.records import Task
from palestra.tasks.katas.draw import Draw
from palestra.tasks.sed import LineEdit, sed
from palestra.tasks.slips import swapped

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
_MARGIN = 8
_BLOCK = re.compile(r"^```(?:python|py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_DEFINED = re.compile(r"(?:def|class)\s+(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn of an expert: what is thought, and the command.

    ``is_slip`` says that it is wrong on purpose.
    """

    thought: str
    command: str
    is_slip: bool = False


def expert_steps(
    task: Task, *, num_slips: int = 0, by_trial: Draw | None = None
) -> tuple[Step, ...]:
    """The turns in which an expert solves ``task``.

    Args:
        task: with a gold patch.
        num_slips: wrong edits before the right one; fewer where the patch offers no more, none
            where the issue shows no program.
        by_trial: chooses them; none: the expert tries nothing.

    Raises:
        TaskError: its gold patch cannot be read.
    """
    try:
        files = PatchSet(task.gold_patch)
    except UnidiffParseError as error:
        raise TaskError(f"{task.instance_id}: its gold patch is no diff: {error}") from None
    if not files:
        raise TaskError(f"{task.instance_id}: its gold patch is empty")
    shown = None if by_trial is None else _shown_program(task.problem_statement)
    steps = [Step(thought="First I look at what is there.", command="git status --short; ls")]
    if shown:
        steps.append(Step(thought="I run what the issue shows.", command=shown))
    steps += [step for file in files for step in _looks(file)]
    if shown and by_trial:
        wrong = by_trial.sample([w for file in files for w in _wrong_edits(file)], num_slips)
        for path, edit in wrong:
            steps += _taken_back(path, edit, shown)
    steps += [_change(file) for file in files]
    if shown:
        steps.append(Step(thought="I run what the issue shows once more.", command=shown))
    steps.append(Step(thought="I check what I have changed.", command="git diff"))
    steps.append(Step(thought="The change is what I wanted, so I hand it in.", command=SUBMIT))
    return tuple(steps)


def _looks(file: PatchSet) -> Iterator[Step]:
    """Find and read what the patch changes in a file that sed can change."""
    if not _edits_of(file):
        return
    path = shlex.quote(file.path)
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


def _change(file: PatchSet) -> Step:
    edits = _edits_of(file)
    if not edits:
        return Step(
            thought=f"{file.path} has to be written as a whole.",
            command=f"git apply <<'END_OF_PATCH'\n{file}END_OF_PATCH",
        )
    lines = ", ".join(str(edit.start) for edit in edits)
    return Step(thought=f"Line {lines} is wrong. I correct it.", command=sed(file.path, edits))


def _taken_back(path: str, edit: LineEdit, shown: str) -> Iterator[Step]:
    yield Step(
        thought=f"Line {edit.start} looks wrong. I try to change it.",
        command=sed(path, [edit]),
        is_slip=True,
    )
    yield Step(thought="I run what the issue shows, to see whether it helps.", command=shown)
    back = f"git checkout {shlex.quote(path)}"
    yield Step(thought="That was not it. I take it back.", command=back)


def _wrong_edits(file: PatchSet) -> Iterator[tuple[str, LineEdit]]:
    """Lines that the patch shows with one thing swapped, none of them as the patch has it."""
    if not _edits_of(file):
        return
    for hunk in file:
        right = {line.value.rstrip("\n") for line in hunk if line.is_added}
        for line in hunk:
            if line.is_added:
                continue
            old = line.value.rstrip("\n")
            for new in swapped(old):
                if new not in right:
                    number = line.source_line_no
                    yield file.path, LineEdit(start=number, old=(old,), new=(new,))


def _shown_program(statement: str) -> str | None:
    """Run the first program of an issue, which prints its last expression."""
    match = _BLOCK.search(statement)
    if match is None:
        return None
    try:
        body = ast.parse(match[1]).body
    except SyntaxError:
        return None
    if not any(isinstance(one, ast.Import | ast.ImportFrom) for one in body):
        return None
    lines = match[1].rstrip().splitlines()
    if isinstance(body[-1], ast.Expr):
        start = body[-1].lineno - 1
        last = "\n".join(lines[start:])
        lines = [*lines[:start], f"print(repr({last}))"]
    return "python3 -B - <<'END'\n" + "\n".join(lines) + "\nEND"


def _edits_of(file: PatchSet) -> list[LineEdit]:
    """What sed has to do; empty where it cannot."""
    edits = [edit for hunk in file for edit in _edits(hunk)]
    # sed has no way to write an empty line last.
    if not file.is_modified_file or any(edit.new[-1:] == ("",) for edit in edits):
        return []
    return edits


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
