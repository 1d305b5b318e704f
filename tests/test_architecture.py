"""The house holds: imports point one way, functions and files stay small.

One ground floor, three wings that never import each other, one roof. See
ARCHITECTURE.md; an exception to a size limit is listed here with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "palestra"
GROUND = {"addresses", "errors", "records", "config", "recipe_files", "events", "wire"}
GROUND |= {"config_base", "config_miles", "config_training", "keepalive", "serving", "tasks"}
GROUND |= {"config_engine"}
WINGS = {"environment", "policy", "learning"}
BESIDE = {
    "backends": {"policy", "learning"},  # carries them into trainers of others
    "forge": {"environment"},  # makes and grades tasks in its sandboxes
}
ROOF = {"run", "report", "dashboard", "cli"}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
LONGER: dict[str, str] = {  # "path" or "path:function" → the reason
    "cli/data.py:prepare": "its lines are the options and their help",
    "cli/evaluate.py:evaluate": "its lines are the options and their help",
    "cli/forge.py:forge": "its lines are the options and their help",
    "cli/serve.py:serve": "its lines are the options and their help",
    "records.py": "every record that flows, in the order of the flow",
}

# Serving environments must not need the training extra.
HEAVY = {"torch", "transformers", "tokenizers", "numpy", "renderers", "safetensors"}
# mini-swe-agent's litellm models cost three seconds and a network fetch at import.
FORBIDDEN = {"litellm", "minisweagent.models.litellm_model"}

FILES = sorted(SRC.rglob("*.py"))


def _floor(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[0]


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _allowed(floor: str) -> set[str]:
    if floor in GROUND:
        return GROUND
    if floor in WINGS:
        return GROUND | {floor}
    if floor in BESIDE:
        return GROUND | BESIDE[floor] | {floor}
    return GROUND | WINGS | set(BESIDE) | ROOF


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_one_way(path: Path) -> None:
    floor = _floor(path)
    tree = ast.parse(path.read_text())
    wrong = []
    for line, name in _imports(tree):
        parts = name.split(".")
        if parts[0] == "palestra" and len(parts) > 1:
            known = GROUND | WINGS | set(BESIDE) | ROOF
            if parts[1] in known and parts[1] not in _allowed(floor):
                wrong.append(f"line {line}: {floor} imports {name}")
        elif any(name == f or name.startswith(f + ".") for f in FORBIDDEN):
            wrong.append(f"line {line}: {name} is forbidden")
    assert not wrong, wrong


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if _floor(p) in GROUND | {"environment"}],
    ids=lambda p: str(p.relative_to(SRC)),
)
def test_environments_serve_without_the_training_extra(path: Path) -> None:
    tree = ast.parse(path.read_text())
    heavy = [f"line {line}: {name}" for line, name in _imports(tree) if name.split(".")[0] in HEAVY]
    assert not heavy, heavy


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_functions_and_files_stay_small(path: Path) -> None:
    text = path.read_text()
    name = str(path.relative_to(SRC))
    too_long = []
    if text.count("\n") > MAX_FILE_LINES and name not in LONGER:
        too_long.append(f"{name}: {text.count(chr(10))} lines")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES and f"{name}:{node.name}" not in LONGER:
                too_long.append(f"{name}:{node.name}: {lines} lines")
    assert not too_long, too_long


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_no_forbidden_habits(path: Path) -> None:
    assert path.name not in {"utils.py", "helpers.py", "misc.py", "common.py"}
    if path.parent.name == "witness":
        return  # programs for the sandboxes of tasks, where they take themselves off the path
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "path"), f"line {node.lineno}: sys.path"
        if isinstance(node, ast.Global):
            raise AssertionError(f"line {node.lineno}: global {', '.join(node.names)}")


def test_every_listed_exception_still_exists() -> None:
    for name in LONGER:
        path, _, _ = name.partition(":")
        assert (SRC / path).exists(), f"{name} is listed but gone"
