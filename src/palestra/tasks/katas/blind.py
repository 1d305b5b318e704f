"""A demonstrator that knows how to work and not what is wrong.

It looks at the file, swaps one operator of one line for another, and hands in, without
having read the issue. A policy fitted to it does everything right but the choice of the
edit: that is what is left to learn from rewards.
"""

from __future__ import annotations

import re
import shlex

from palestra.errors import TaskError
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.expert import SUBMIT

REPLACED = ("+", "-", "*")
REPLACEMENTS = ("+", "-", "*", "//")

_RETURN = re.compile(r"^    return (.+)$", re.MULTILINE)
_SPECIAL, _ESCAPED = re.compile(r"([\\.*\[\]^$])"), r"\\\1"  # to sed
_OPERATOR = re.compile(r" ([-+*]) ")


def blind_demonstration(path: str, text: str, draw: Draw) -> tuple[str, ...]:
    """The bash commands: one that looks, one that edits somewhere, one that submits.

    Args:
        path: of the file, relative to the repository.
        text: of the file.
        draw: every line with an operator, every operator in it and every other operator
            in its place are equally likely.

    Raises:
        TaskError: no line returns an expression with an operator.
    """
    lines = [line for line in _RETURN.findall(text) if _OPERATOR.search(line)]
    if not lines:
        raise TaskError(f"{path}: no line returns an expression with one of {REPLACED}")
    old = draw.pick(lines)
    found = draw.pick(list(_OPERATOR.finditer(old)))
    operator = draw.pick([op for op in REPLACEMENTS if op != found[1]])
    return look_edit_submit(path, old, f"{old[: found.start()]} {operator} {old[found.end() :]}")


def look_edit_submit(path: str, old: str, new: str) -> tuple[str, ...]:
    """The bash commands that put ``new`` in the place of ``old`` in the file ``path``."""
    name = shlex.quote(path)
    return (f"cat {name}", f"sed -i {shlex.quote(_substitution(old, new))} {name}", SUBMIT)


def _substitution(old: str, new: str) -> str:
    # No slash as delimiter: it is an operator here, and would have to be escaped.
    return f"s|{_SPECIAL.sub(_ESCAPED, old)}|{new}|"
