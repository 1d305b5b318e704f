"""What an example needs beside its statements: imports, constants, helpers, simple fixtures."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from palestra.forge.nodes import (
    BUILTINS,
    Function,
    TestFunction,
    bound_name,
    called_name,
    loaded,
    stored,
)

_MAX_HELPER_LINES = 12
_STANDARD = sys.stdlib_module_names | {"pytest"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What comes before an example.

    Attributes:
        statements: imports first.
        is_complete: whether the example runs with them.
    """

    statements: tuple[ast.stmt, ...]
    is_complete: bool


class Surroundings:
    """The file around a test.

    Args:
        tree: of the file.
        test: in it.
        packages: top-level names of the library; any, if empty.
    """

    def __init__(
        self, tree: ast.Module, test: TestFunction, packages: Collection[str] = ()
    ) -> None:
        self._packages = packages
        self._of_library: set[str] = set()
        self._imports: dict[str, ast.stmt] = {}
        self._others: dict[str, ast.stmt] = {}
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._import(statement)
            elif isinstance(statement, Function) and _is_fixture(statement):
                continue
            else:
                for name in stored(statement) if _is_simple(statement) else ():
                    self._others[name] = statement
        self._fixtures = _fixtures([*tree.body, *(s for c in test.classes for s in c.body)])

    def subject(self, statements: Sequence[ast.stmt]) -> str:
        """The function of the library that is called last, the outermost first; or nothing."""
        for statement in reversed(statements):
            for call in ast.walk(statement):
                name = called_name(call) if isinstance(call, ast.Call) else ""
                if isinstance(call, ast.Call) and name.partition(".")[0] in self._of_library:
                    return name if name.replace(".", "").isidentifier() else ""
        for statement in reversed(statements):
            for call in ast.walk(statement):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                    owner = ast.unparse(call.func.value)
                    if owner not in ("self", "pytest") and owner.isidentifier():
                        return f"{owner}.{call.func.attr}"
        return ""

    def of(self, statements: Sequence[ast.stmt]) -> Around:
        """What these statements need."""
        imports: dict[str, ast.stmt] = {}
        others: dict[int, ast.stmt] = {}
        fixtures: list[ast.stmt] = []
        complete = True
        wanted = sorted(loaded(*statements) - stored(*statements) - BUILTINS)
        known: set[str] = set()
        while wanted:
            name = wanted.pop()
            if name in known:
                continue
            known.add(name)
            found: Sequence[ast.stmt] = ()
            if name in self._fixtures:
                found = self._fixtures[name]
                fixtures[:0] = found
            elif name in self._imports:
                imports[ast.unparse(self._imports[name])] = self._imports[name]
            elif name in self._others:
                statement = self._others[name]
                others[statement.lineno] = statement
                found = [statement]
            else:
                complete = False
            wanted += sorted(loaded(*found) - stored(*found) - BUILTINS)
        return Around(
            statements=(
                *(imports[text] for text in sorted(imports)),
                *(others[line] for line in sorted(others)),
                *fixtures,
            ),
            is_complete=complete,
        )

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        if isinstance(statement, ast.ImportFrom) and statement.level:
            return  # a helper of the tests
        for alias in statement.names:
            module = alias.name if isinstance(statement, ast.Import) else statement.module or ""
            top = module.partition(".")[0]
            if top in self._packages or (not self._packages and top not in _STANDARD):
                self._of_library.add(bound_name(alias))
            single: ast.stmt = (
                ast.Import(names=[alias])
                if isinstance(statement, ast.Import)
                else ast.ImportFrom(module=statement.module, names=[alias], level=0)
            )
            self._imports[bound_name(alias)] = single


def _is_simple(statement: ast.stmt) -> bool:
    """A constant, or a short helper."""
    if isinstance(statement, Function) and statement.name.startswith("test"):
        return False
    if isinstance(statement, ast.ClassDef) and statement.name.startswith("Test"):
        return False
    if not isinstance(statement, ast.Assign | ast.AnnAssign | Function | ast.ClassDef):
        return False
    return (statement.end_lineno or statement.lineno) - statement.lineno < _MAX_HELPER_LINES


def _is_fixture(function: Function) -> bool:
    return any(
        (called_name(d) or ast.unparse(d)).rpartition(".")[2] == "fixture"
        for d in function.decorator_list
    )


def _fixtures(body: Sequence[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Fixtures that end in the value they give, which those that they use come before."""
    found: dict[str, list[ast.stmt]] = {}
    for function in body:
        if not isinstance(function, Function) or not _is_fixture(function):
            continue
        last = function.body[-1]
        value = last.value if isinstance(last, ast.Return) else None
        if isinstance(last, ast.Expr) and isinstance(last.value, ast.Yield):
            value = last.value.value
        if value is None or "self" in loaded(function):
            continue
        given = ast.Assign(targets=[ast.Name(id=function.name, ctx=ast.Store())], value=value)
        ast.copy_location(given, last)
        steps = [s for s in function.body[:-1] if not _is_text(s)]
        found[function.name] = [*steps, given]
    return found


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
