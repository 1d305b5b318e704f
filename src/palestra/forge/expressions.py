"""Bugs inside of expressions: one function per kind, which finds its edits in a module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from palestra.forge.source import Edit, Source

_OPERATORS: Mapping[bytes, bytes] = {
    b"+": b"-", b"-": b"+", b"*": b"+", b"/": b"//", b"//": b"/", b"%": b"//", b"**": b"*",
    b"|": b"&", b"&": b"|", b"^": b"|", b"<<": b">>", b">>": b"<<", b"and": b"or", b"or": b"and",
}  # fmt: skip
_COMPARISONS: Mapping[bytes, bytes] = {
    b"==": b"!=", b"!=": b"==", b"<": b">", b">": b"<", b"<=": b">=", b">=": b"<=",
    b"in": b"not in", b"not in": b"in", b"is": b"is not", b"is not": b"is",
}  # fmt: skip
_BOUNDARIES: Mapping[bytes, bytes] = {b"<": b"<=", b"<=": b"<", b">": b">=", b">=": b">"}
_QUIET_CALLS = frozenset({"strip", "lstrip", "rstrip", "lower", "upper", "casefold", "copy"})


def _between(
    source: Source, left: ast.expr, right: ast.expr, other: Mapping[bytes, bytes]
) -> Iterator[Edit]:
    """Exchange the operator that stands between two operands, by the table ``other``."""
    start, end = source.span(left)[1], source.span(right)[0]
    found = re.fullmatch(rb"([\s)\\]*)([^\s()\\#]+(?: +[a-z]+)?)[\s(\\]*", source.data[start:end])
    if found and (new := other.get(found[2])):
        first = start + found.start(2)
        yield source.edit((first, first + len(found[2])), new)


def operator(source: Source) -> Iterator[Edit]:
    """Another arithmetic, bitwise or Boolean operator."""
    for node in source.nodes():
        if isinstance(node, ast.BinOp):
            yield from _between(source, node.left, node.right, _OPERATORS)
        elif isinstance(node, ast.BoolOp) and len(node.values) == 2:
            yield from _between(source, node.values[0], node.values[1], _OPERATORS)


def comparison(source: Source) -> Iterator[Edit]:
    """A comparison that asks the opposite or looks the other way."""
    yield from _compared(source, _COMPARISONS)


def boundary(source: Source) -> Iterator[Edit]:
    """A comparison that takes its boundary in, or leaves it out."""
    yield from _compared(source, _BOUNDARIES)


def _compared(source: Source, other: Mapping[bytes, bytes]) -> Iterator[Edit]:
    for node in source.nodes():
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from _between(source, node.left, node.comparators[0], other)


def off_by_one(source: Source) -> Iterator[Edit]:
    """A whole number that is one too large or too small."""
    for node in source.nodes():
        if isinstance(node, ast.Constant) and type(node.value) is int:
            for step in (1, -1):
                if node.value + step >= 0:
                    yield source.edit(source.span(node), b"%d" % (node.value + step))


def wrong_constant(source: Source) -> Iterator[Edit]:
    """True for False, None for a returned constant, a number far off."""
    for node in source.nodes():
        if not isinstance(node, ast.Constant):
            continue
        if isinstance(node.value, bool):
            yield source.edit(source.span(node), b"False" if node.value else b"True")
        elif type(node.value) is int and node.value > 2:
            yield source.edit(source.span(node), b"%d" % (node.value * 2))
        elif type(node.value) is float and node.value:
            yield source.edit(source.span(node), repr(node.value * 2).encode())


def swapped_arguments(source: Source) -> Iterator[Edit]:
    """Two neighbouring positional arguments in each other's place."""
    for node in source.nodes():
        if not isinstance(node, ast.Call):
            continue
        for left, right in pairwise(node.args):
            if isinstance(left, ast.Starred) or isinstance(right, ast.Starred):
                continue
            first, second = source.span(left), source.span(right)
            middle = source.data[first[1] : second[0]]
            if source.text(left) != source.text(right) and middle.strip() == b",":
                new = source.text(right) + middle + source.text(left)
                yield source.edit((first[0], second[1]), new)


def dropped_argument(source: Source) -> Iterator[Edit]:
    """A call without the last of its arguments."""
    for node in source.nodes():
        if isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > 1:
            given = [*(source.span(a) for a in node.args), *(source.span(k) for k in node.keywords)]
            given.sort()
            yield source.edit((given[-2][1], given[-1][1]), b"")


def dropped_condition(source: Source) -> Iterator[Edit]:
    """A conjunction or disjunction without one of its conditions."""
    for node in source.nodes():
        if isinstance(node, ast.BoolOp):
            spans = [source.wrapped(value, node) for value in node.values]
            yield source.edit((spans[0][0], spans[1][0]), b"")
            for before, dropped in pairwise(spans):
                yield source.edit((before[1], dropped[1]), b"")


def inverted_branch(source: Source) -> Iterator[Edit]:
    """A condition that is asked the wrong way round."""
    for node in source.nodes():
        if isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.UnaryOp):
            yield source.edit(source.span(node.test), b"not (" + source.text(node.test) + b")")


def dropped_unary(source: Source) -> Iterator[Edit]:
    """``x`` for ``not x`` or ``-x``."""
    for node in source.nodes():
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            start, _ = source.span(node)
            yield source.edit((start, source.wrapped(node.operand, node)[0]), b"")


def dropped_call(source: Source) -> Iterator[Edit]:
    """``x`` for ``x.strip()``, ``x.copy()`` and their like."""
    for node in source.nodes():
        if isinstance(node, ast.Call) and not node.args and not node.keywords:
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in _QUIET_CALLS:
                end = source.wrapped(called.value, node)[1]
                yield source.edit((end, source.span(node)[1]), b"")


def lost_edge_case(source: Source) -> Iterator[Edit]:
    """One side of a conditional expression, or of ``min`` or ``max``, for the whole."""
    for node in source.nodes():
        if isinstance(node, ast.IfExp):
            for kept in (node.body, node.orelse):
                start, end = source.wrapped(kept, node)
                yield source.edit(source.span(node), source.data[start:end])
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"min", "max"}
            and len(node.args) == 2
            and not node.keywords
        ):
            for argument in node.args:
                yield source.edit(source.span(node), b"(" + source.text(argument) + b")")
