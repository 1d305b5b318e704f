"""What pytest's explanation of a failed assertion says: values, and the calls they come from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPERATORS = (" == ", " != ", " is not ", " not in ", " is ", " in ", " <= ", " >= ", " < ", " > ")
_WHERE = re.compile(r"\s*\+\s+(?:where|and) {1,8}(.*)$")
_OPENING, _CLOSING = "([{", ")]}"
_QUOTES = "'\""
_UNITTEST = re.compile(
    r"(?:\w+ differ: )?(.*?) (!=|not found in|unexpectedly found in|is not|not less than) (.*)$"
)
_MAX_CHARS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two values as their ``repr`` shows them, and what was asked of them."""

    left: str
    operator: str
    right: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call with its arguments' values, ``chunk([1, 2], 1)``, and what it gave."""

    text: str
    value: str


def compared(message: str) -> Compared | None:
    """The two sides of a comparison that did not hold, if the message tells them."""
    for line in message.split("\n"):
        if line.startswith("assert "):
            return _split(line.removeprefix("assert ").removeprefix("not "))
    first = message.partition("\n")[0][:_MAX_CHARS]
    found = _UNITTEST.match(first)
    if found is None:
        return None
    # The shortest left side is wrong where a value holds the operator itself.
    whole = _split(first.partition("differ: ")[2] or first) if found[2] == "!=" else None
    return whole or Compared(left=found[1], operator=found[2], right=found[3])


def calls(message: str) -> Iterator[Call]:
    """The calls that the explanation traces values to, the outermost first."""
    for line in message.split("\n"):
        found = _WHERE.match(line[:_MAX_CHARS])
        if found is None:
            continue
        halves = _split_at(found[1], " = ")
        if halves is not None and _is_call(halves[1]):
            yield Call(text=halves[1], value=halves[0])


def called(text: str) -> str | None:
    """The function of a call, ``pkg.chunk`` of ``pkg.chunk(1)``."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return ast.unparse(tree.func) if isinstance(tree, ast.Call) else None


def _is_call(text: str) -> bool:
    return called(text) is not None


def _split(text: str) -> Compared | None:
    for operator in _OPERATORS:
        halves = _split_at(text, operator)
        if halves is not None:
            return Compared(left=halves[0], operator=operator.strip(), right=halves[1])
    return None


def _split_at(text: str, separator: str) -> tuple[str, str] | None:
    """Cut at the first ``separator`` outside of brackets and strings, or at the only one."""
    text = text[:_MAX_CHARS]
    depth, quote = 0, ""
    for index, character in enumerate(text):
        if quote:
            if character == quote and text[index - 1] != "\\":
                quote = ""
        elif character in _QUOTES:
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif depth == 0 and text.startswith(separator, index):
            return text[:index], text[index + len(separator) :]
    if text.count(separator) == 1:
        left, _, right = text.partition(separator)
        return left, right
    return None
