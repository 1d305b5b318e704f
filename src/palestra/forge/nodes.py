"""Small questions about the syntax tree of a test file."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef
BUILTINS = frozenset(dir(builtins))
"""Names that need no import."""

_SETUP = ("setUp", "setup_method", "setup")


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFunction:
    """A test function and the classes around it, the outermost first."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    function: Function
    classes: tuple[ast.ClassDef, ...]


def parse(text: str) -> ast.Module | None:
    """The tree of a module; ``None`` where there is none."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def find_test(tree: ast.Module, test: str) -> TestFunction | None:
    """The function of a test id; of several with one name the last, as in Python."""
    *outer, name = test.partition("::")[2].partition("[")[0].split("::")
    body: Sequence[ast.stmt] = tree.body
    classes: list[ast.ClassDef] = []
    for wanted in outer:
        found = [s for s in body if isinstance(s, ast.ClassDef) and s.name == wanted]
        if not found:
            return None
        classes.append(found[-1])
        body = found[-1].body
    functions = [s for s in body if isinstance(s, Function) and s.name == name]
    return TestFunction(function=functions[-1], classes=tuple(classes)) if functions else None


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    """The names that a module gives a value once, and the values."""
    found: dict[str, list[ast.expr]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found.setdefault(statement.targets[0].id, []).append(statement.value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def own_steps(test_class: ast.ClassDef) -> list[ast.stmt]:
    """What a class gives its instances before each test, as statements."""
    steps: list[ast.stmt] = [s for s in test_class.body if isinstance(s, ast.Assign)]
    for statement in test_class.body:
        is_setup = isinstance(statement, Function) and statement.name in _SETUP
        if isinstance(statement, Function) and is_setup:
            steps += [s for s in statement.body if not is_text(s) and not _is_super(s)]
    return steps


def stored_on_self(statement: ast.stmt) -> set[str]:
    """The attributes of ``self`` that a statement gives a value."""
    return {
        node.attr
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def _is_super(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and called_name(statement.value).startswith("super")


def loaded(*nodes: ast.AST) -> set[str]:
    """The names that code reads."""
    return {n.id for n in _names(nodes) if isinstance(n.ctx, ast.Load)}


def stored(*nodes: ast.AST) -> set[str]:
    """The names that code gives a value, functions, classes and imports included."""
    names = {n.id for n in _names(nodes) if not isinstance(n.ctx, ast.Load)}
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, Function | ast.ClassDef):
                names.add(inner.name)
            elif isinstance(inner, ast.arg):
                names.add(inner.arg)
            elif isinstance(inner, ast.alias):
                names.add(bound_name(inner))
            elif isinstance(inner, ast.ExceptHandler) and inner.name:
                names.add(inner.name)
    return names


def bound_name(alias: ast.alias) -> str:
    """The name that an import gives a value."""
    return alias.asname or alias.name.partition(".")[0]


def called_name(node: ast.expr) -> str:
    """``pytest.raises`` of ``pytest.raises(ValueError)``; empty where it is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return ast.unparse(node.func)


def holds(node: ast.stmt, line: int) -> bool:
    """Whether a statement reaches over a line."""
    decorated = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
    first = min([node.lineno, *(d.lineno for d in decorated)])
    return first <= line <= (node.end_lineno or node.lineno)


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring or another constant."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _names(nodes: Sequence[ast.AST]) -> Iterator[ast.Name]:
    for node in nodes:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name):
                yield inner
