"""What can be seen to be broken about a task before any sandbox starts; pure.

That a patch does not apply at the base commit, or that a listed test is in no file, takes a
sandbox to find out: certifying does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

from palestra.records import HOST_IMAGE, Task
from palestra.tasks.patches import flaw, flaw_of_setup
from palestra.tasks.swegym import END_MARKER, START_MARKER

LOG_PARSERS = frozenset(
    {"parse_log_signed", "parse_log_pytest", "parse_log_pytest_options", "parse_log_pytest_v2"}
    | {"parse_log_pytest_pydantic", "parse_log_astroid", "parse_log_astropy", "parse_log_django"}
    | {"parse_log_flask", "parse_log_marshmallow", "parse_log_matplotlib", "parse_log_pvlib"}
    | {"parse_log_pydicom", "parse_log_pylint", "parse_log_pyvista", "parse_log_requests"}
    | {"parse_log_scikit", "parse_log_seaborn", "parse_log_sphinx", "parse_log_sqlfluff"}
    | {"parse_log_sympy", "parse_log_xarray"}
)
"""The names of log parsers that a row may give; the grader has a parser for each."""

_COMMIT = re.compile(r"[0-9a-fA-F]{4,64}|HEAD")
_FULL_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_IMAGE = re.compile(r"\w[\w.-]*(?::\d+)?(?:/[\w.-]+)*(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Options of pytest whose value is the next word.
_WITH_VALUE = frozenset({"-k", "-m", "-p", "-o", "-c", "-n", "-r", "-W", "--tb", "--rootdir"})


def broken(task: Task) -> tuple[str, str] | None:
    """The name of a field of ``task`` that cannot be right and what is wrong, if there is one."""
    return next(_flaws(task), None)


def _flaws(task: Task) -> Iterator[tuple[str, str]]:
    if not _COMMIT.fullmatch(task.base_commit):
        yield "base_commit", f"is {task.base_commit!r}, not a commit id or HEAD"
    if not _IMAGE.fullmatch(task.image):
        yield "image", f"is {task.image!r}, not the name of an image"
    if task.log_parser not in LOG_PARSERS:
        known = ", ".join(sorted(LOG_PARSERS))
        yield "log_parser", f"is {task.log_parser!r}; known are {known}"
    for name, patch in (("patch", task.gold_patch), ("test_patch", task.test_patch)):
        if wrong := flaw(patch):
            yield name, wrong
    yield from _flaws_of_setup(task)
    for marker in (START_MARKER, END_MARKER):
        if marker not in task.eval_script:
            yield "eval_script", f"has no marker {marker!r}"
    if task.eval_script.find(END_MARKER) < task.eval_script.find(START_MARKER):
        yield "eval_script", "prints its end marker before its start marker"
    yield from _flaws_of_tests(task)


def _flaws_of_setup(task: Task) -> Iterator[tuple[str, str]]:
    if not task.setup_patch:
        return
    if task.files or task.image == HOST_IMAGE:
        yield "setup_patch", "is for the repository of an image, and this row brings its own"
    if not _FULL_COMMIT.fullmatch(task.base_commit):
        yield "base_commit", "is no full commit id, which a setup patch has to make"
    if wrong := flaw_of_setup(task.setup_patch):
        yield "setup_patch", wrong


def _flaws_of_tests(task: Task) -> Iterator[tuple[str, str]]:
    files = files_run(task.eval_script)
    for name, tests in (("FAIL_TO_PASS", task.fail_to_pass), ("PASS_TO_PASS", task.pass_to_pass)):
        for test in tests:
            if not test.strip() or _CONTROL.search(test):
                yield name, f"holds {test!r}, which no test is called"
            if files is not None and not _is_in(test, files):
                ran = ", ".join(files)
                yield name, f"holds {test!r}, but the tests that run are those of {ran}"


def files_run(eval_script: str) -> tuple[str, ...] | None:
    """The test files that ``eval_script`` runs; ``None`` where that is not plain to see.

    It is plain where all that stands between the markers is one call of pytest on ``.py`` files.
    """
    _, _, rest = eval_script.partition(START_MARKER)
    lines = [line for line in rest.partition(END_MARKER)[0].split("\n")[1:-1] if line.strip()]
    try:
        words = shlex.split(lines[0]) if len(lines) == 1 else []
    except ValueError:
        return None
    if words[:1] != ["pytest"]:
        return None
    files = [
        word
        for before, word in pairwise(words)
        if not word.startswith("-") and before not in _WITH_VALUE
    ]
    return tuple(files) if files and all(file.endswith(".py") for file in files) else None


def _is_in(test: str, files: Sequence[str]) -> bool:
    path, colons, _ = test.partition("::")
    if not colons or not path.endswith(".py"):
        return True  # not an id with a path, whatever it is
    # pytest takes a package's __init__.py for the whole package.
    packages = [file.removesuffix("__init__.py") for file in files if file.endswith("__init__.py")]
    return path in files or any(path.startswith(package) for package in packages)
