"""What a test asks for in the statement that failed."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from palestra.forge.nodes import called_name

_EQUAL = frozenset(
    {
        "assertEqual", "assertEquals", "assertListEqual", "assertDictEqual", "assertTupleEqual",
        "assertSetEqual", "assertSequenceEqual", "assertMultiLineEqual", "assertIs",
        "assertAlmostEqual", "assertCountEqual",
    }
)  # fmt: skip
_RAISING = (
    "raises",
    "assertRaises",
    "assertRaisesRegex",
    "warns",
    "assertWarns",
    "deprecated_call",
)
_CONDITIONS = {
    "assertTrue": "{}", "assertFalse": "not {}", "assertIn": "{} in {}",
    "assertNotIn": "{} not in {}", "assertIsNone": "{} is None", "assertGreater": "{} > {}",
    "assertIsNotNone": "{} is not None", "assertNotEqual": "{} != {}", "assertLess": "{} < {}",
    "assertIsInstance": "isinstance({}, {})", "assertGreaterEqual": "{} >= {}",
    "assertLessEqual": "{} <= {}", "assertIsNot": "{} is not {}",
    "assertNotIsInstance": "not isinstance({}, {})",
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


def check_of(statement: ast.stmt) -> Check | None:
    """What an ``assert``, or an assertion of unittest's, asks for."""
    if isinstance(statement, ast.Assert):
        return _of_condition(statement.test)
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return None
    call = statement.value
    if not isinstance(call.func, ast.Attribute):
        return None
    name = call.func.attr
    if name in _EQUAL and len(call.args) >= 2:
        return _equal(call.args[0], call.args[1])
    template = _CONDITIONS.get(name)
    if template is None or len(call.args) < template.count("{}"):
        return None
    parts = [f"({ast.unparse(argument)})" for argument in call.args[: template.count("{}")]]
    return Holds(condition=ast.parse(template.format(*parts), mode="eval").body)


def raises_of(item: ast.expr) -> Raises | None:
    """What ``pytest.raises(…)`` and its like, around a block, ask for."""
    name = called_name(item).rpartition(".")[2]
    if name not in _RAISING or not isinstance(item, ast.Call):
        return None
    warns = "warn" in name.lower() or name == "deprecated_call"
    exception = ast.unparse(item.args[0]) if item.args else "Exception"
    if name == "deprecated_call":
        exception = "DeprecationWarning"
    pattern = next((k.value for k in item.keywords if k.arg == "match"), None)
    if pattern is None and name == "assertRaisesRegex" and len(item.args) > 1:
        pattern = item.args[1]
    is_text = isinstance(pattern, ast.Constant) and isinstance(pattern.value, str)
    match = pattern.value if is_text and isinstance(pattern, ast.Constant) else None
    return Raises(exception=exception, match=str(match) if match else None, warns=warns)


def is_check(statement: ast.stmt) -> bool:
    """Whether a statement only looks at what others did."""
    if isinstance(statement, ast.Assert):
        return True
    if isinstance(statement, ast.With | ast.AsyncWith):
        return any(raises_of(item.context_expr) is not None for item in statement.items)
    if isinstance(statement, ast.Expr):
        name = called_name(statement.value)
        return name.rpartition(".")[2].startswith("assert") or name.startswith("pytest.")
    return False


def _of_condition(test: ast.expr) -> Check:
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        if isinstance(test.ops[0], ast.Eq):
            return _equal(test.left, test.comparators[0])
        if isinstance(test.ops[0], ast.Is):
            return _equal(test.left, test.comparators[0])
    return Holds(condition=test)


def _equal(left: ast.expr, right: ast.expr) -> Equal:
    """Tell what is asked for from what comes of the code: a literal is asked for."""
    if _plainness(left) > _plainness(right):
        return Equal(actual=right, expected=left, actual_is_left=False)
    return Equal(actual=left, expected=right, actual_is_left=True)


def _plainness(node: ast.expr) -> int:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        name = node.id if isinstance(node, ast.Name) else ""
        named = any(part in name.lower() for part in ("expect", "want", "should", "correct"))
        return 1 if named else 0
    return 2
