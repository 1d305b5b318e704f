"""A module's bytes with the positions of its syntax tree, and edits of those bytes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from palestra.errors import TaskError

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANK = b" \t\r\n\f\\"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Edit:
    """Bytes ``start`` to ``end`` of a module, which are ``old``, become ``new``."""

    start: int
    end: int
    old: bytes
    new: bytes

    def apply(self, data: bytes) -> bytes:
        """Make the edit.

        Raises:
            TaskError: ``data`` does not hold ``old`` at that place.
        """
        if data[self.start : self.end] != self.old:
            raise TaskError(f"bytes {self.start} to {self.end} are not what the edit replaces")
        return data[: self.start] + self.new + data[self.end :]

    def reversed(self) -> Edit:
        """The edit that undoes this one."""
        return Edit(start=self.start, end=self.start + len(self.new), old=self.new, new=self.old)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A module as bytes, its tree and the offset at which each line starts."""

    data: bytes
    tree: ast.Module
    line_starts: tuple[int, ...]

    @classmethod
    def parse(cls, data: bytes) -> Source:
        """Read a module.

        Raises:
            TaskError: it is not Python, not UTF-8, or starts with a byte order mark.
        """
        if data.startswith(b"\xef\xbb\xbf"):
            raise TaskError("a module with a byte order mark is not mutated")
        try:
            tree = ast.parse(data.decode("utf-8"))
        except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError) as error:
            raise TaskError(f"not a module of UTF-8 Python: {error}") from error
        starts = (0, *(match.end() for match in _LINE_END.finditer(data)))
        return cls(data=data, tree=tree, line_starts=starts)

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        """Where ``node`` starts and ends, in bytes, without parentheses around it."""
        end_line, end_col = node.end_lineno, node.end_col_offset
        assert end_line is not None, "parsed nodes have an end"
        assert end_col is not None, "parsed nodes have an end"
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[end_line - 1] + end_col

    def wrapped(self, node: ast.expr, parent: ast.expr) -> tuple[int, int]:
        """The span of ``node`` with the parentheses that ``parent`` has around it."""
        start, end = self.span(node)
        low, high = self.span(parent)
        while True:
            before, after = start, end
            while before > low and self.data[before - 1] in _BLANK:
                before -= 1
            while after < high and self.data[after] in _BLANK:
                after += 1
            opens = before > low and self.data[before - 1 : before] == b"("
            if not (opens and after < high and self.data[after : after + 1] == b")"):
                return start, end
            start, end = before - 1, after + 1

    def text(self, node: ast.expr | ast.stmt | ast.keyword) -> bytes:
        """The bytes of ``node``."""
        start, end = self.span(node)
        return self.data[start:end]

    def edit(self, span: tuple[int, int], new: bytes) -> Edit:
        """The edit that writes ``new`` over ``span``."""
        return Edit(start=span[0], end=span[1], old=self.data[span[0] : span[1]], new=new)

    def lines(self, node: ast.stmt) -> tuple[int, int] | None:
        """The span of the lines of ``node``, or None where it shares one with other code.

        The span starts at the indentation and ends before the last line's end.
        """
        start, end = self.span(node)
        first = self.line_starts[node.lineno - 1]
        end_line = node.end_lineno or node.lineno
        following = self.line_starts[end_line] if end_line < len(self.line_starts) else None
        rest = self.data[end:following].strip()
        if self.data[first:start].strip() or (rest and not rest.startswith(b"#")):
            return None
        last = len(self.data) if following is None else following
        return start, end + len(self.data[end:last].rstrip(b"\r\n"))

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods, in the order of the text."""
        found = (
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        yield from sorted(found, key=lambda node: (node.lineno, node.col_offset))

    def nodes(self) -> Iterator[ast.AST]:
        """What runs inside of functions, each node once: no annotation, decorator or f-string.

        Positions inside of f-strings are wrong before Python 3.12.
        """
        seen: set[int] = set()
        for function in self.functions():
            for statement in function.body:
                for node in _run_time(statement):
                    if id(node) not in seen:
                        seen.add(id(node))
                        yield node


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.JoinedStr):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "args"} and not isinstance(
            node, ast.Call
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _run_time(child)
