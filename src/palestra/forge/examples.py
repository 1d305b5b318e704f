"""What a failing test did, as a user of the library would have typed it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from palestra.forge.checks import Check, Equal, Holds, Raises, check_of, is_check, raises_of
from palestra.forge.nodes import (
    BUILTINS,
    TestFunction,
    called_name,
    find_test,
    holds,
    is_text,
    loaded,
    parse,
    stored,
)
from palestra.forge.parameters import parameters_of
from palestra.forge.records import Failure
from palestra.forge.surroundings import Surroundings

MAX_LINES = 25
"""Of an example; longer ones are cut down to the statement that failed."""
_MAX_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Code that shows a bug.

    Attributes:
        code: statements; the last is what failed.
        check: what was asked of it; ``None``: nothing but that it works.
        subject: the function that is at fault as far as a user can see; may be empty.
        is_whole: whether ``code`` runs as it stands.
    """

    code: str
    check: Check | None
    subject: str
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failing:
    """The statements that ran before the failing one, that one, and what was asked of it."""

    before: tuple[ast.stmt, ...]
    last: ast.stmt
    check: Check | None


def example_of(failure: Failure, text: str) -> Example | None:
    """Make an example of a failing test.

    Args:
        failure: its report.
        text: of its file.

    Returns:
        ``None`` where the file does not show the failing statement, or is nested too deeply.
    """
    try:
        return _example(failure, text)
    except (RecursionError, MemoryError):
        return None


def _example(failure: Failure, text: str) -> Example | None:
    tree = parse(text)
    test = find_test(tree, failure.test) if tree is not None else None
    line = _failing_line(failure, test)
    if tree is None or test is None or line is None:
        return None
    failing = _failing(test.function.body, line)
    if failing is None:
        return None
    values = _values(failure.test, test)
    failing = _with_values(failing, values or {})
    surroundings = Surroundings(tree, test)
    result = _result(failing)
    statements = [*_needed(failing.before, result), *result]
    around = surroundings.of(statements)
    subject = _subject([*failing.before, *result])
    code = _text([*around.statements, *statements])
    if around.is_complete and _is_short(code):
        return Example(code=code, check=failing.check, subject=subject, is_whole=True)
    return Example(code=_text(result), check=failing.check, subject=subject, is_whole=False)


def _failing_line(failure: Failure, test: TestFunction | None) -> int | None:
    """The line of the test function that the failure went through."""
    path = failure.test.partition("::")[0]
    lines = [
        frame.line
        for frame in failure.frames
        if frame.path == path and test is not None and holds(test.function, frame.line)
    ]
    return lines[-1] if lines else None


def _failing(body: Sequence[ast.stmt], line: int) -> _Failing | None:
    before: list[ast.stmt] = []
    for statement in body:
        if holds(statement, line):
            inner = _inside(statement, line)
            return _Failing(before=(*before, *inner.before), last=inner.last, check=inner.check)
        if not is_text(statement):
            before.append(statement)
    return None


def _inside(statement: ast.stmt, line: int) -> _Failing:
    """The failing statement in a block: out of what only watches, as it stands elsewhere."""
    if isinstance(statement, ast.With | ast.AsyncWith):
        asked = [r for item in statement.items if (r := raises_of(item.context_expr))]
        inner = _failing(statement.body, line)
        if asked:
            if inner is None:  # nothing was raised: the block ran to its end
                inner = _Failing(
                    before=tuple(statement.body[:-1]), last=statement.body[-1], check=None
                )
            return _Failing(before=inner.before, last=inner.last, check=asked[0])
        if inner is not None and _is_subtest(statement):
            return inner
    return _Failing(before=(), last=statement, check=check_of(statement))


def _is_subtest(statement: ast.With | ast.AsyncWith) -> bool:
    names = (called_name(item.context_expr).rpartition(".")[2] for item in statement.items)
    return all(name in ("subTest", "test") for name in names)


def _values(test: str, function: TestFunction) -> Mapping[str, ast.expr] | None:
    decorators = [d for c in reversed(function.classes) for d in c.decorator_list]
    return parameters_of(test, function.function, decorators)


class _Inline(ast.NodeTransformer):
    """Writes values for names."""

    def __init__(self, values: Mapping[str, ast.expr]) -> None:
        self._values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self._values.get(node.id)
        if value is None or not isinstance(node.ctx, ast.Load):
            return node
        return copy.deepcopy(value)


def _with_values(failing: _Failing, values: Mapping[str, ast.expr]) -> _Failing:
    """Inline parameters, except those that the test gives other values."""
    given = stored(*failing.before, failing.last)
    inline = _Inline({name: value for name, value in values.items() if name not in given})

    def fresh(statement: ast.stmt) -> ast.stmt:
        changed = inline.visit(copy.deepcopy(statement))
        assert isinstance(changed, ast.stmt), "only names are replaced"
        return ast.fix_missing_locations(changed)

    last = fresh(failing.last)
    check = failing.check
    if not isinstance(check, Raises):
        check = check_of(last)
    return _Failing(before=tuple(map(fresh, failing.before)), last=last, check=check)


def _result(failing: _Failing) -> list[ast.stmt]:
    """The failing statement without what was asked of it."""
    check = failing.check
    if isinstance(check, Equal):
        return [ast.Expr(value=check.actual)]
    if isinstance(check, Holds):
        return [ast.Expr(value=check.condition)]
    call = failing.last.value if isinstance(failing.last, ast.Expr) else None
    if isinstance(call, ast.Call) and raises_of(call) is not None and len(call.args) > 1:
        called = ast.Call(func=call.args[1], args=call.args[2:], keywords=call.keywords)
        return [ast.Expr(value=called)]
    return [failing.last]


def _needed(before: Sequence[ast.stmt], result: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements that the result depends on, checks left out, in their order."""
    names = loaded(*result)
    kept: list[ast.stmt] = []
    for statement in reversed(before):
        for part in reversed(list(_without_checks(statement))):
            changes = isinstance(part, ast.Expr) or not stored(part)
            if stored(part) & names or (changes and loaded(part) & names - BUILTINS):
                kept.append(part)
                names |= loaded(part)
    return kept[::-1]


def _without_checks(statement: ast.stmt) -> Iterator[ast.stmt]:
    """A statement, or of a check the calls that may have changed something."""
    if not is_check(statement):
        yield statement
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            is_local = isinstance(owner, ast.Name) and owner.id not in ("self", "pytest")
            if is_local:
                yield ast.Expr(value=node)


def _subject(statements: Sequence[ast.stmt]) -> str:
    """The function that is called last, one that is not Python's own."""
    for statement in reversed(statements):
        calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
        for call in calls:  # the outermost first
            if isinstance(call.func, ast.Name) and call.func.id not in BUILTINS:
                return call.func.id
            if isinstance(call.func, ast.Attribute):
                name = ast.unparse(call.func)
                if not name.startswith(("self.", "pytest.")):
                    return name if name.replace(".", "").isidentifier() else call.func.attr
    return ""


def _text(statements: Sequence[ast.stmt]) -> str:
    return "\n".join(ast.unparse(ast.fix_missing_locations(s)) for s in statements)


def _is_short(code: str) -> bool:
    return code.count("\n") < MAX_LINES and len(code) <= _MAX_CHARS
