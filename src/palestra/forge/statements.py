"""Bugs made of whole statements: one function per kind, which finds its edits in a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import pairwise

from palestra.forge.source import Edit, Source

_EXCEPTIONS: Mapping[str, bytes] = {
    "ValueError": b"TypeError", "TypeError": b"ValueError", "KeyError": b"IndexError",
    "IndexError": b"KeyError", "AttributeError": b"KeyError", "StopIteration": b"ValueError",
    "RuntimeError": b"ValueError", "OSError": b"ValueError", "NotImplementedError": b"TypeError",
    "LookupError": b"ValueError", "ZeroDivisionError": b"ValueError",
}  # fmt: skip
_LEAVES = (ast.Raise, ast.Return, ast.Continue, ast.Break)
_CHANGERS = frozenset({"add", "append", "clear", "discard", "extend", "pop", "remove", "update"})


def removed_guard(source: Source) -> Iterator[Edit]:
    """No early ``return``, ``raise``, ``continue`` or ``break`` under its condition."""
    for body in _bodies(source):
        for statement in body:
            if not isinstance(statement, ast.If) or statement.orelse:
                continue
            if isinstance(statement.body[-1], _LEAVES):
                yield from _without(source, statement)


def wrong_exception(source: Source) -> Iterator[Edit]:
    """Another exception raised or caught."""
    for node in source.nodes():
        name: ast.expr | None = None
        if isinstance(node, ast.Raise):
            name = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        elif isinstance(node, ast.ExceptHandler):
            name = node.type
        if isinstance(name, ast.Name) and (other := _EXCEPTIONS.get(name.id)):
            yield source.edit(source.span(name), other)


def shuffled_lines(source: Source) -> Iterator[Edit]:
    """Two neighbouring simple statements in the wrong order."""
    simple = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr)
    for body in _bodies(source):
        for first, second in pairwise(body):
            if not (isinstance(first, simple) and isinstance(second, simple)) or _is_text(first):
                continue
            if source.lines(first) is None or source.lines(second) is None:
                continue
            above, below = source.span(first), source.span(second)
            middle = source.data[above[1] : below[0]]
            if not middle.strip() and source.text(first) != source.text(second):
                new = source.text(second) + middle + source.text(first)
                yield source.edit((above[0], below[1]), new)


def stale_cache(source: Source) -> Iterator[Edit]:
    """State of an object that a method no longer keeps up to date."""
    for function in source.functions():
        if function.name in {"__init__", "__new__"}:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.stmt) and _updates_self(node):
                yield from _without(source, node)


def removed_body(source: Source) -> Iterator[Edit]:
    """A function that is yet to be written."""
    for function in source.functions():
        body = function.body[1:] if _is_text(function.body[0]) else function.body
        if len(body) < 2 or function.name == "__init__":
            continue
        if source.lines(body[0]) is not None and source.lines(body[-1]) is not None:
            span = source.span(body[0])[0], source.span(body[-1])[1]
            yield source.edit(span, b"raise NotImplementedError")


def loop_exit(source: Source) -> Iterator[Edit]:
    """``break`` for ``continue`` or the other way round."""
    for node in source.nodes():
        if isinstance(node, ast.Break | ast.Continue):
            new = b"continue" if isinstance(node, ast.Break) else b"break"
            yield source.edit(source.span(node), new)


def lost_branch(source: Source) -> Iterator[Edit]:
    """An ``else`` whose work is not done."""
    for node in source.nodes():
        if isinstance(node, ast.If) and node.orelse and not isinstance(node.orelse[0], ast.If):
            first, last = node.orelse[0], node.orelse[-1]
            if source.lines(first) is not None and source.lines(last) is not None:
                yield source.edit((source.span(first)[0], source.span(last)[1]), b"pass")


def _bodies(source: Source) -> Iterator[list[ast.stmt]]:
    for node in [*source.functions(), *source.nodes()]:
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                yield body


def _without(source: Source, statement: ast.stmt) -> Iterator[Edit]:
    """``pass`` in its place: whatever stands around it stays Python."""
    if source.lines(statement) is not None and not source.text(statement).startswith(b"elif"):
        yield source.edit(source.span(statement), b"pass")


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _updates_self(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        return any(_on_self(target) for target in statement.targets)
    if isinstance(statement, ast.AugAssign):
        return _on_self(statement.target)
    if isinstance(statement, ast.Delete):
        return any(_on_self(target) for target in statement.targets)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = statement.value.func
        if isinstance(called, ast.Attribute) and called.attr in _CHANGERS:
            return _on_self(called.value)
    return False


def _on_self(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return _on_self(node.value)
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "self"
    return False
