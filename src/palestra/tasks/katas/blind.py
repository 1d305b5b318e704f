"""A demonstrator that knows how to work and not what is wrong.

It looks at the file, swaps one operator of one line for another, and hands in, without
having read the issue: half by habit, half at random. A policy fitted to it does everything
right but the choice of the edit: that is what is left to learn from rewards. The habits
are there for greedy decoding: without them, the likeliest edit would be the called-for
one as soon as the demonstrator reads an issue now and then.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from dataclasses import dataclass

from palestra.errors import TaskError
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.expert import SUBMIT

OPPOSITES = {"+": "-", "-": "+", "*": "//"}
REPLACEMENTS = ("+", "-", "*", "//", "%")

_RETURN = re.compile(r"^    return (.+)$", re.MULTILINE)
_SPECIAL, _ESCAPED = re.compile(r"([\\.*\[\]^$])"), r"\\\1"  # to sed
_OPERATOR = re.compile(r" ([-+*]) ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """An expression that a line returns, and the one to stand in its place."""

    old: str
    new: str


def blind_edits(path: str, text: str) -> dict[Edit, float]:
    """The edits that are thought of, each with its probability; these sum to one.

    Half of the time it is the first line that returns an expression with an operator, else
    any such line; and half of the time the opposite operator, else any other.

    Args:
        path: of the file, for the error.
        text: of the file.

    Raises:
        TaskError: no line returns an expression with an operator.
    """
    lines = [line for line in _RETURN.findall(text) if _OPERATOR.search(line)]
    if not lines:
        raise TaskError(f"{path}: no line returns an expression with one of {[*OPPOSITES]}")
    edits: defaultdict[Edit, float] = defaultdict(float)
    for number, line in enumerate(lines):
        found = list(_OPERATOR.finditer(line))
        of_line = 0.5 * (number == 0) + 0.5 / len(lines)
        for match in found:
            others = [op for op in REPLACEMENTS if op != match[1]]
            for op in others:
                of_op = 0.5 * (op == OPPOSITES[match[1]]) + 0.5 / len(others)
                new = f"{line[: match.start()]} {op} {line[match.end() :]}"
                edits[Edit(old=line, new=new)] += of_line * of_op / len(found)
    return dict(edits)


def blind_demonstration(path: str, text: str, draw: Draw) -> tuple[str, ...]:
    """The bash commands: one that looks, one that makes one of ``blind_edits``, one that submits.

    Raises:
        TaskError: as ``blind_edits``.
    """
    return look_edit_submit(path, draw.weighted(blind_edits(path, text)))


def look_edit_submit(path: str, edit: Edit) -> tuple[str, ...]:
    """The bash commands that make ``edit`` in the file ``path``."""
    name = shlex.quote(path)
    return (f"cat {name}", f"sed -i {shlex.quote(_substitution(edit))} {name}", SUBMIT)


def _substitution(edit: Edit) -> str:
    # No slash as delimiter: it is an operator here, and would have to be escaped.
    return f"s|{_SPECIAL.sub(_ESCAPED, edit.old)}|{edit.new}|"
