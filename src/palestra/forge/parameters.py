"""The values behind a parametrised test's id, read from its decorators."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from palestra.forge.nodes import BUILTINS, TestFunction

_MAX_SETS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """One set of parameters: its part of the id, and its values by name."""

    id: str
    values: Mapping[str, ast.expr]


def parameters_of(
    test: str, function: TestFunction, constants: Mapping[str, ast.expr]
) -> Mapping[str, ast.expr] | None:
    """The expressions that a test's parameters stand for.

    Args:
        test: its id, perhaps cut at the first blank, as log parsers do.
        function: of the test.
        constants: of its file, which may hold the parameters.

    Returns:
        Nothing for a test without parameters; ``None`` where they cannot be read from the
        text, or the id fits several sets.
    """
    outer = [d for c in reversed(function.classes) for d in c.decorator_list[::-1]]
    decorators = [*function.function.decorator_list[::-1], *outer]
    marks = [mark for d in decorators if (mark := _mark(d))]
    if not marks:
        return {}
    _, bracket, rest = test.partition("[")
    wanted = rest.removesuffix("]")
    is_cut = not rest.endswith("]")
    stacks: list[list[_Set]] = []
    total = 1
    for mark in marks:
        sets = _sets(mark, constants)
        if not bracket or sets is None:
            return None
        stacks.append(sets)
        total *= len(sets)
    if total > _MAX_SETS:
        return None
    found = []
    for combination in product(*stacks):
        name = "-".join(one.id for one in combination)
        if name == wanted or (is_cut and name.partition(" ")[0] == wanted):
            found.append(combination)
    if len(found) != 1:
        return None
    return {name: value for one in found[0] for name, value in one.values.items()}


def _mark(decorator: ast.expr) -> ast.Call | None:
    if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute):
        return decorator if decorator.func.attr == "parametrize" else None
    return None


def _sets(mark: ast.Call, constants: Mapping[str, ast.expr]) -> list[_Set] | None:
    given = dict(zip(("argnames", "argvalues"), mark.args, strict=False))
    keywords = {keyword.arg: keyword.value for keyword in mark.keywords}
    names = _names(given.get("argnames", keywords.get("argnames")))
    values = given.get("argvalues", keywords.get("argvalues"))
    if isinstance(values, ast.Name):
        values = constants.get(values.id)
    if names is None or not isinstance(values, ast.List | ast.Tuple):
        return None
    ids = keywords.get("ids")
    given_ids = _texts(ids) if ids is not None else []
    if given_ids is None:
        return None
    sets = []
    for index, value in enumerate(values.elts):
        elements, own_id = _elements(value, len(names))
        if elements is None:
            return None
        name = own_id or (given_ids[index] if index < len(given_ids) else None)
        parts = (_part(n, e, index) for n, e in zip(names, elements, strict=True))
        sets.append(
            _Set(id=name or "-".join(parts), values=dict(zip(names, elements, strict=True)))
        )
    return _numbered(sets)


def _numbered(sets: list[_Set]) -> list[_Set]:
    """Equal ids get numbers, which newer versions of pytest put behind an underscore."""
    ids = [one.id for one in sets]
    if len(set(ids)) == len(ids):
        return sets
    return [one for one in sets if ids.count(one.id) == 1]


def _names(node: ast.expr | None) -> list[str] | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [name.strip() for name in node.value.split(",") if name.strip()]
    return _texts(node)


def _texts(node: ast.expr | None) -> list[str] | None:
    if not isinstance(node, ast.List | ast.Tuple):
        return None
    texts = [e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
    return texts if len(texts) == len(node.elts) else None


def _elements(value: ast.expr, num_names: int) -> tuple[list[ast.expr] | None, str | None]:
    """The values of one set, and the id that ``pytest.param`` gives it."""
    own_id = None
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("pytest.param", "param"):
        for keyword in value.keywords:
            if keyword.arg == "id" and isinstance(keyword.value, ast.Constant):
                own_id = str(keyword.value.value)
        elements = list(value.args)
    elif num_names == 1:
        elements = [value]
    elif isinstance(value, ast.Tuple | ast.List):
        elements = list(value.elts)
    else:
        return None, None
    return (elements if len(elements) == num_names else None), own_id


def _part(name: str, value: ast.expr, index: int) -> str:
    """The part of an id that pytest makes of one value."""
    try:
        literal = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        if isinstance(value, ast.Name | ast.Attribute):
            # Classes and functions are called by their names, everything else by its place.
            last = value.id if isinstance(value, ast.Name) else value.attr
            is_class = last[:1].isupper() and not last.isupper()
            return last if is_class or last in BUILTINS else f"{name}{index}"
        return f"{name}{index}"
    if isinstance(literal, str):
        return literal.encode("unicode_escape").decode("ascii")
    if isinstance(literal, bytes):
        return "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in literal)
    if literal is None or isinstance(literal, bool | int | float | complex):
        return str(literal)
    return f"{name}{index}"
