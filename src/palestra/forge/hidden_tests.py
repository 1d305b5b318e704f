"""Test files without the tests that a task hides."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from palestra.errors import TaskError
from palestra.forge.source import Source

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Scope = ast.Module | ast.ClassDef


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A statement and the block that it is in."""

    statement: ast.stmt
    block: Sequence[ast.stmt]


def without_tests(data: bytes, tests: Collection[str]) -> bytes | None:
    """The text of a test file without some of its test functions.

    A function goes with its decorators, the comments right above it and the blank lines before
    those. A class of which nothing is left goes too, unless something names it. Everything
    else stays byte for byte: helpers, fixtures, imports.

    Args:
        data: the file.
        tests: ids relative to the file, ``test_a``, ``TestA::test_b[c]``; the parameters are
            not looked at.

    Returns:
        ``None`` where a test cannot be taken out alone: it is inherited or generated, other
        code of the file uses it, or the file is no UTF-8 Python.
    """
    try:
        source = Source.parse(data)
    except (TaskError, MemoryError):
        return None
    removed: list[_Place] = []
    for name in sorted({test.partition("[")[0] for test in tests}):
        places = list(_find(source.tree, name.split("::")))
        if not places:
            return None
        removed += places
    left = _cut(source, _with_empty_classes(source.tree, removed))
    names = {place.statement.name for place in removed if isinstance(place.statement, _Function)}
    return left if _stands_alone(left, names) else None


def _find(scope: _Scope, names: Sequence[str]) -> Iterator[_Place]:
    """All definitions of that name, for a class may hold one in each branch of an ``if``."""
    for place in _statements(scope.body):
        statement = place.statement
        if len(names) == 1 and isinstance(statement, _Function) and statement.name == names[0]:
            yield place
        elif len(names) > 1 and isinstance(statement, ast.ClassDef) and statement.name == names[0]:
            yield from _find(statement, names[1:])


def _statements(block: Sequence[ast.stmt]) -> Iterator[_Place]:
    """The statements of a block and of the conditional blocks in it, not of definitions."""
    for statement in block:
        yield _Place(statement=statement, block=block)
        if isinstance(statement, _Function | ast.ClassDef):
            continue
        for name in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, name, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from _statements(handler.body)


def _with_empty_classes(tree: ast.Module, removed: list[_Place]) -> list[_Place]:
    """Replace the removed parts of each class that is left empty by the class itself."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    gone = {id(place.statement) for place in removed}
    classes = [
        place
        for place in _all_places(tree)
        if isinstance(place.statement, ast.ClassDef) and place.statement.name not in names
    ]
    for place in reversed(classes):  # inner ones come later
        assert isinstance(place.statement, ast.ClassDef), "only classes were kept"
        body = place.statement.body
        if any(id(s) in gone for s in body) and all(id(s) in gone or _is_text(s) for s in body):
            inside = {id(statement) for statement in body}
            removed = [p for p in removed if id(p.statement) not in inside]
            removed.append(place)
            gone.add(id(place.statement))
    return removed


def _all_places(scope: _Scope) -> Iterator[_Place]:
    for place in _statements(scope.body):
        yield place
        if isinstance(place.statement, ast.ClassDef):
            yield from _all_places(place.statement)


def _cut(source: Source, removed: Sequence[_Place]) -> bytes:
    data = source.data
    gone = {id(place.statement) for place in removed}
    for place in sorted(removed, key=lambda p: p.statement.lineno, reverse=True):
        start, end, indent = _span(source, place.statement)
        # A block that is left without a statement keeps its place with "pass".
        is_last = all(id(s) in gone for s in place.block) and place.statement is place.block[0]
        keeps = indent + b"pass\n" if is_last and place.block is not source.tree.body else b""
        data = data[:start] + keeps + data[end:]
    return data


def _span(source: Source, statement: ast.stmt) -> tuple[int, int, bytes]:
    """Where the lines of a definition start and end, and its indentation."""
    assert isinstance(statement, _Function | ast.ClassDef), "only definitions are removed"
    first = min([statement.lineno, *(node.lineno for node in statement.decorator_list)]) - 1
    lines = _Lines(source)
    indent = lines.indent(first)
    while first > 0 and lines.is_comment(first - 1) and lines.indent(first - 1) == indent:
        first -= 1
    while first > 0 and lines.is_blank(first - 1):
        first -= 1
    last = after = statement.end_lineno or statement.lineno
    while after < lines.count and (lines.is_blank(after) or _belongs(lines, after, indent)):
        after += 1
        if not lines.is_blank(after - 1):
            last = after
    return lines.start(first), lines.start(last), indent


def _belongs(lines: _Lines, line: int, indent: bytes) -> bool:
    """Whether a line is a comment at the end of a body."""
    return lines.is_comment(line) and len(lines.indent(line)) > len(indent)


class _Lines:
    """The lines of a source, counted from 0."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count = len(source.line_starts)

    def start(self, line: int) -> int:
        return self._source.line_starts[line] if line < self.count else len(self._source.data)

    def text(self, line: int) -> bytes:
        return self._source.data[self.start(line) : self.start(line + 1)]

    def indent(self, line: int) -> bytes:
        text = self.text(line)
        return text[: len(text) - len(text.lstrip(b" \t\f"))]

    def is_blank(self, line: int) -> bool:
        return not self.text(line).strip()

    def is_comment(self, line: int) -> bool:
        return self.text(line).lstrip().startswith(b"#")


def _stands_alone(data: bytes, names: Collection[str]) -> bool:
    """Whether what is left is Python and does not use what was taken out."""
    try:
        tree = ast.parse(data.decode("utf-8"))
        compile(tree, "left", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    defined = {n.name for n in ast.walk(tree) if isinstance(n, _Function)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    used |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    return not (used & set(names)) - defined


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
