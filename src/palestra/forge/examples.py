"""What a failing test did, as a user of the library would have typed it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from palestra.forge.checks import (
    Check,
    Equal,
    Holds,
    Raises,
    called_by,
    check_of,
    is_check,
    raises_of,
)
from palestra.forge.explanations import compared
from palestra.forge.nodes import (
    BUILTINS,
    TestFunction,
    called_name,
    constants,
    find_test,
    holds,
    is_text,
    loaded,
    own_steps,
    parse,
    stored,
    stored_on_self,
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


def example_of(failure: Failure, text: str, packages: Collection[str] = ()) -> Example | None:
    """Make an example of a failing test.

    Args:
        failure: its report.
        text: of its file.
        packages: top-level names of the library, whose functions may be at fault; any, if empty.

    Returns:
        ``None`` where the file does not show the failing statement, or is nested too deeply.
    """
    try:
        return _example(failure, text, packages)
    except (RecursionError, MemoryError):
        return None


def _example(failure: Failure, text: str, packages: Collection[str]) -> Example | None:
    tree = parse(text)
    test = find_test(tree, failure.test) if tree is not None else None
    line = _failing_line(failure, test)
    if tree is None or test is None or line is None:
        return None
    failing = _failing(test.function.body, line)
    if failing is None:
        return None
    failing = _without_self(failing, test)
    values = parameters_of(failure.test, test, constants(tree))
    failing = _with_values(failing, values or {})
    if isinstance(failing.check, Equal) and compared(failure.message) is None:
        # Nobody says what was given: show the question instead.
        failing = replace(failing, check=_question(failing.check))
    surroundings = Surroundings(tree, test, packages)
    result = _result(failing)
    statements = [*_needed(failing.before, result), *result]
    around = surroundings.of(statements)
    subject = surroundings.subject([*failing.before, *result])
    code = laid_out([*around.statements, *statements])
    if not _is_short(code):
        code = laid_out(result)
    is_whole = around.is_complete and _is_short(code)
    if values is None:
        code += f"  # for {failure.test.partition('[')[2].removesuffix(']')}"
    return Example(code=code, check=failing.check, subject=subject, is_whole=is_whole)


def _failing_line(failure: Failure, test: TestFunction | None) -> int | None:
    """The line of the test function that the failure went through."""
    if test is None:
        return None
    path = failure.test.partition("::")[0]
    lines = [
        frame.line
        for frame in failure.frames
        if frame.path == path and holds(test.function, frame.line)
    ]
    return lines[0] if lines else None  # those after it are of functions inside of the test


def _question(check: Equal) -> Holds:
    """Whether the two sides are equal, as a condition."""
    condition = ast.Compare(left=check.actual, ops=[ast.Eq()], comparators=[check.expected])
    return Holds(condition=condition)


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
    return _Failing(before=(), last=statement, check=None)


def _is_subtest(statement: ast.With | ast.AsyncWith) -> bool:
    names = (called_name(item.context_expr).rpartition(".")[2] for item in statement.items)
    return all(name in ("subTest", "test") for name in names)


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

    check = failing.check
    if not isinstance(check, Raises):
        check = check_of(fresh(failing.last), failing.before)
    before = tuple(map(fresh, failing.before))
    return _Failing(before=before, last=fresh(failing.last), check=check)


class _OwnAttributes(ast.NodeTransformer):
    """Writes ``name`` for ``self.name``."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
        if is_own and node.attr in self._names:
            return ast.copy_location(ast.Name(id=node.attr, ctx=node.ctx), node)
        return node


def _without_self(failing: _Failing, test: TestFunction) -> _Failing:
    """Put what the class and its ``setUp`` give ``self`` in front, as plain names."""
    steps = [s for c in test.classes for s in own_steps(c)]
    names = {name for step in steps for name in stored_on_self(step)} | stored(
        *(step for step in steps if isinstance(step, ast.Assign))
    )
    names -= stored(*failing.before, failing.last)
    change = _OwnAttributes(names)

    def changed(statement: ast.stmt) -> ast.stmt:
        visited = change.visit(copy.deepcopy(statement))
        assert isinstance(visited, ast.stmt), "only attributes are replaced"
        return visited

    before = (*steps, *failing.before) if names else failing.before
    return replace(failing, before=tuple(map(changed, before)), last=changed(failing.last))


def _result(failing: _Failing) -> list[ast.stmt]:
    """The failing statement without what was asked of it."""
    check = failing.check
    if isinstance(check, Equal):
        return [ast.Expr(value=check.actual)]
    if isinstance(check, Holds):
        return [ast.Expr(value=check.condition)]
    last = failing.last
    call = last.value if isinstance(last, ast.Expr) else None
    call = last.test if isinstance(last, ast.Assert) else call
    if isinstance(call, ast.Call) and raises_of(call) is not None:
        inner = called_by(call)
        return [last if inner is None else ast.Expr(value=inner)]
    return [last]


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


def laid_out(statements: Sequence[ast.stmt]) -> str:
    """Statements as text, definitions and imports set off by blank lines."""
    text = ""
    last: ast.stmt | None = None
    for statement in statements:
        if last is not None:
            apart = (
                ast.FunctionDef,
                ast.AsyncFunctionDef,
                ast.ClassDef,
                ast.Import,
                ast.ImportFrom,
            )
            is_apart = isinstance(last, apart) or isinstance(statement, apart[:3])
            are_imports = isinstance(last, apart[3:]) and isinstance(statement, apart[3:])
            text += "\n\n" if is_apart and not are_imports else "\n"
        text += ast.unparse(ast.fix_missing_locations(statement)).replace("\n\n", "\n")
        last = statement
    return text


def _is_short(code: str) -> bool:
    return code.count("\n") < MAX_LINES and len(code) <= _MAX_CHARS
