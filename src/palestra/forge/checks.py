"""What a test asks for in the statement that failed."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palestra.forge.nodes import BUILTINS, called_name

# Of unittest, nose and numpy: assertEqual, assert_equal, eq_. Underscores do not count.
_EQUAL = frozenset(
    {
        "assertequal", "assertequals", "assertlistequal", "assertdictequal", "assertis",
        "assertsetequal", "asserttupleequal", "assertsequenceequal", "assertmultilineequal",
        "assertalmostequal", "assertcountequal", "assertitemsequal", "eq",
    }
)  # fmt: skip
_RAISING = frozenset(
    {"raises", "assertraises", "assertraisesregex", "warns", "assertwarns", "deprecatedcall"}
)
_ASKED_FOR = ("expect", "want", "should", "correct", "desired")
_CONDITIONS = {
    "asserttrue": "{}", "assertfalse": "not {}", "assertin": "{} in {}",
    "assertnotin": "{} not in {}", "assertisnone": "{} is None", "assertgreater": "{} > {}",
    "assertisnotnone": "{} is not None", "assertnotequal": "{} != {}", "assertless": "{} < {}",
    "assertisinstance": "isinstance({}, {})", "assertgreaterequal": "{} >= {}",
    "assertlessequal": "{} <= {}", "assertisnot": "{} is not {}", "assert": "{}", "ok": "{}",
    "assertnotisinstance": "not isinstance({}, {})",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Equal:
    """``actual`` should have been equal to ``expected``.

    Attributes:
        actual: what the code under test gives.
        expected: what it should give.
        actual_is_left: how they stand in the test.
    """

    actual: ast.expr
    expected: ast.expr
    actual_is_left: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """``condition`` should have been true."""

    condition: ast.expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Raises:
    """The code should have raised ``exception``, or warned of it.

    Attributes:
        exception: as the test names it.
        match: what its text should match; ``None`` where anything will do.
        warns: whether it is a warning.
    """

    exception: str
    match: str | None
    warns: bool


Check = Equal | Holds | Raises


def check_of(statement: ast.stmt, before: Sequence[ast.stmt] = ()) -> Check | None:
    """What an ``assert``, or an assertion by another name, asks for.

    Args:
        statement: the assertion.
        before: the statements that ran before it.
    """
    if isinstance(statement, ast.Assert):
        return _of_condition(statement.test, before)
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return None
    call = statement.value
    name = _last_name(call)
    if name in _EQUAL and len(call.args) >= 2:
        return _equal(call.args[0], call.args[1], before)
    template = _CONDITIONS.get(name)
    if template is None or len(call.args) < template.count("{}"):
        return raises_of(call) if len(call.args) > 1 else None
    if name == "asserttrue":
        return _of_condition(call.args[0], before)
    parts = [f"({ast.unparse(argument)})" for argument in call.args[: template.count("{}")]]
    return Holds(condition=ast.parse(template.format(*parts), mode="eval").body)


def raises_of(item: ast.expr) -> Raises | None:
    """What ``pytest.raises(…)`` and its like ask for."""
    if not isinstance(item, ast.Call):
        return None
    name = _last_name(item)
    if name not in _RAISING:
        return None
    exception = ast.unparse(item.args[0]) if item.args else "Exception"
    if name == "deprecatedcall":
        exception = "DeprecationWarning"
    pattern = next((k.value for k in item.keywords if k.arg == "match"), None)
    if pattern is None and name == "assertraisesregex" and len(item.args) > 1:
        pattern = item.args[1]
    match = None
    if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str):
        match = pattern.value
    warns = "warn" in name or name == "deprecatedcall"
    return Raises(exception=exception, match=match, warns=warns)


def called_by(call: ast.Call) -> ast.expr | None:
    """The call that ``raises(ValueError, function, argument)`` makes."""
    given = call.args[2:] if _last_name(call) == "assertraisesregex" else call.args[1:]
    if not given:
        return None
    function, *arguments = given
    if isinstance(function, ast.Lambda) and not arguments:
        return function.body
    keywords = [keyword for keyword in call.keywords if keyword.arg != "match"]
    return ast.Call(func=function, args=arguments, keywords=keywords)


def is_check(statement: ast.stmt) -> bool:
    """Whether a statement only looks at what others did."""
    if isinstance(statement, ast.Assert):
        return True
    if isinstance(statement, ast.With | ast.AsyncWith):
        return any(raises_of(item.context_expr) is not None for item in statement.items)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        name = _last_name(statement.value)
        is_other = name == "print" or called_name(statement.value).startswith("pytest.")
        return name.startswith("assert") or name in _EQUAL or name in _RAISING or is_other
    return False


def _last_name(call: ast.Call) -> str:
    return called_name(call).rpartition(".")[2].replace("_", "").lower()


def _of_condition(test: ast.expr, before: Sequence[ast.stmt]) -> Check:
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        if isinstance(test.ops[0], ast.Eq | ast.Is):
            return _equal(test.left, test.comparators[0], before)
    elif isinstance(test, ast.Call) and len(test.args) > 1:
        return raises_of(test) or Holds(condition=test)
    return Holds(condition=test)


def _equal(left: ast.expr, right: ast.expr, before: Sequence[ast.stmt]) -> Equal:
    """Tell what is asked for from what comes of the code: the plainer side is asked for."""
    given: dict[str, ast.expr] = {}
    for statement in before:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            given[statement.targets[0].id] = statement.value
    if _plainness(left, given) > _plainness(right, given):
        return Equal(actual=right, expected=left, actual_is_left=False)
    return Equal(actual=left, expected=right, actual_is_left=True)


def _plainness(node: ast.expr, given: Mapping[str, ast.expr]) -> int:
    """3: a literal; 2: said to be expected, or made by Python alone; 1: a name; 0: a call."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    else:
        return 3
    if isinstance(node, ast.Name):
        if any(part in node.id.lower() for part in _ASKED_FOR):
            return 2
        value = given.get(node.id)
        return 1 if value is None else _plainness(value, {})
    calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    if not calls:
        return 1
    return 2 if all(_is_plain(called_name(call)) for call in calls) else 0


def _is_plain(function: str) -> bool:
    """Python's own functions, classes, ``pytest.approx``, and the methods of literals."""
    last = function.rpartition(".")[2]
    return function in BUILTINS or last[:1].isupper() or last in ("approx", "join", "dedent")
