"""From a seed to rows: draw, run, keep what is a task, write it down."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from palestra.errors import TaskError
from palestra.records import HOST_IMAGE
from palestra.tasks.katas import diffs, script
from palestra.tasks.katas.cases import Cases, find_cases
from palestra.tasks.katas.catalog import CATALOGS
from palestra.tasks.katas.compose import Draft, compose
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.observe import Case
from palestra.tasks.katas.spec import KataSpec, Split

_MAX_DRAWS = 400
_VERSION = "1"  # of the generator: other rows for the same seed are another version
_CREATED_AT = "2025-01-01T00:00:00Z"


def generate_rows(spec: KataSpec) -> Iterator[dict[str, Any]]:
    """The rows of ``spec``, the levels taking turns.

    Raises:
        TaskError: the source asks for more different tasks than can be drawn.
    """
    streams = [_rows(spec.split, spec.seed, level) for level in spec.levels]
    for index in range(spec.num_tasks):
        yield next(streams[index % len(streams)])


def _rows(split: Split, seed: int, level: int) -> Iterator[dict[str, Any]]:
    seen: set[bytes] = set()
    index = 0
    while True:
        yield _row(split, seed, level, index, seen)
        index += 1


def _row(split: Split, seed: int, level: int, index: int, seen: set[bytes]) -> dict[str, Any]:
    name = f"kata-{split}-s{seed}-l{level}-{index:06d}"
    catalog = CATALOGS[split]
    for number in range(_MAX_DRAWS):
        draw = Draw(f"palestra {_VERSION} {name} {number}")
        draft = compose(draw, catalog, level)
        cases = find_cases(draft, draw)
        if cases is None:
            continue
        row = _write(name, split, draft, cases)
        digest = hashlib.blake2b(row["problem_statement"].encode(), digest_size=12).digest()
        if digest not in seen:  # the statement alone tells the tasks of a source apart
            seen.add(digest)
            return row
    raise TaskError(
        f"katas:{split} of level {level} and seed {seed} has no more than {index} different tasks",
        hint="ask for fewer, or take another level or seed for the rest",
    )


def _write(name: str, split: Split, draft: Draft, cases: Cases) -> dict[str, Any]:
    path = f"tests/test_{draft.module}.py"
    named = [(script.test_name(case, i), case) for i, case in enumerate(cases.tested)]
    module_of = {function.name: draft.module for function in draft.functions}
    if draft.caller is not None and draft.caller_module is not None:
        module_of[draft.caller.name] = draft.caller_module
    called = {case.name for case in cases.tested}
    tests = script.hidden_tests({n: m for n, m in module_of.items() if n in called}, named)
    buggy, right = draft.text(buggy=True), draft.text(buggy=False)
    files = {draft.path: buggy, **draft.surroundings()}
    return {
        "instance_id": name,
        "repo": "palestra/kata",
        "base_commit": "HEAD",
        "patch": diffs.changed_file(draft.path, buggy, right),
        "test_patch": diffs.new_file(path, tests),
        "problem_statement": _issue(draft, cases.shown, f"{module_of[cases.shown.name]}.py"),
        "hints_text": "",
        "created_at": _CREATED_AT,
        "version": _VERSION,
        "FAIL_TO_PASS": [f"{path}::{test}" for test, case in named if case.flips],
        "PASS_TO_PASS": [f"{path}::{test}" for test, case in named if not case.flips],
        "image": HOST_IMAGE,
        "eval_script": script.eval_script(path, tests),
        "log_parser": "parse_log_signed",
        "eval_type": "pass_and_fail",
        "subset": "katas",
        "split": split,
        "files": [{"path": path, "text": text} for path, text in sorted(files.items())],
        "level": draft.level,
        "family": draft.target.family.name,
        "bug": draft.bug.kind,
    }


def _issue(draft: Draft, case: Case, path: str) -> str:
    expected, actual = repr(case.expected.value), case.actual
    if draft.level == 0:
        doc = draft.target.doc.rstrip(".")
        does = f"raises {actual.error}" if actual.error else f"returns {actual.value!r}"
        return f"`{case.call}` in {path} {does}, expected {expected}: {doc}.\n"
    if actual.error is not None:
        observed = f"It raises `{actual.error}`; expected `{expected}`."
    elif actual.value != case.expected.value:
        observed = f"It returns `{actual.value!r}`; expected `{expected}`."
    else:
        observed = f"It changes its arguments, which are {_quoted_list(actual.arguments)} after it."
    return (
        f"`{case.name}` in {path} goes wrong\n\n"
        f"```python\n{case.call}\n```\n\n{observed} "
        f"What is meant is said in the docstrings and in README.md.\n"
    )


def _quoted_list(values: tuple[Any, ...]) -> str:
    return " and ".join(f"`{value!r}`" for value in values)
