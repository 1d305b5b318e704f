"""The one command of a grading: the row's script, the patch and the witness in their places.

Rows bring a script that installs, puts the hidden tests in place, runs them between two
markers and tidies up. The patch goes in behind the installation, so that the code under test
does not run before the hidden tests are there; only a patch that may change the build goes
in before it. The witness and its key come directly before the tests.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from palestra.environment.sandboxes.protocol import SECRET_FD
from palestra.tasks.swegym import START_MARKER


class Runner(StrEnum):
    """What runs the tests of a row, and so who can bear witness."""

    PYTEST = "pytest"
    UNITTEST = "unittest"
    SYMPY = "sympy"
    OWN = "own"
    """The script itself reads the key and signs."""


_SIGNS = {
    Runner.SYMPY: ("bin/test",),
    Runner.UNITTEST: ("runtests.py", "manage.py", "unittest", "django"),
}
_FILES = {
    Runner.PYTEST: ("palestra_seal.py", "palestra_pytest.py"),
    Runner.UNITTEST: ("palestra_seal.py", "palestra_unittest.py", "sitecustomize.py"),
    Runner.SYMPY: ("palestra_seal.py", "palestra_sympy.py", "sitecustomize.py"),
    Runner.OWN: (),
}
_PATH = re.compile(r"(?<![\w$])PYTHONPATH=(?=\S)")
_PLACING = re.compile(r"^git (?:checkout \S+ \S|apply\b)", re.MULTILINE)
# Until the tests begin, what the script starts shall not find the key on a descriptor.
_KEEP_KEY = f"IFS= read -r palestra_key <&{SECRET_FD}; exec {SECRET_FD}<&-\n"
_START = re.compile(rf"^[ \t]*(?::|echo)[ \t]+['\"]?{re.escape(START_MARKER)}", re.MULTILINE)


def runner_of(log_parser: str) -> Runner:
    """Who runs the tests of rows with this log parser."""
    special = {
        "parse_log_sympy": Runner.SYMPY,
        "parse_log_django": Runner.UNITTEST,
        "parse_log_signed": Runner.OWN,
    }
    return special.get(log_parser, Runner.PYTEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What a grading does besides the row's script.

    Attributes:
        apply: bash that applies the patch in the current directory, or ends the shell.
        apply_first: whether the patch goes in before the installation.
        witness: bash that sets the witness up, or nothing.
        witness_folder: where it lies.
    """

    apply: str
    apply_first: bool
    witness: str
    witness_folder: str


def compose(script: str, steps: Steps) -> str:
    """The row's script with everything in its place."""
    start = _START.search(script)
    tests_at = start.start() if start else len(script)
    placing = _PLACING.search(script, 0, tests_at)
    placing_at = placing.start() if placing and not steps.apply_first else 0
    parts = [
        "palestra_home=$PWD\n",
        _KEEP_KEY if steps.witness else "",
        script[:placing_at],
        _quietly(steps.apply, folder=True),
        script[placing_at:tests_at],
        _quietly(steps.witness) if start else "",
        _with_folder(script[tests_at:], steps.witness_folder)
        if steps.witness
        else script[tests_at:],
    ]
    return "".join(parts)


def _with_folder(tests: str, folder: str) -> str:
    """Put ``folder`` on the path of tests that set one of their own."""
    return _PATH.sub(f"PYTHONPATH={folder}:", tests)


def witness_steps(
    runner: Runner, *, hidden: Sequence[str], changed: Sequence[str], folder: str
) -> str:
    """Bash that lays the witness's files into a folder and points the runner there.

    Args:
        runner: of the row.
        hidden: the hidden test files.
        changed: the files of the patch.
        folder: absolute path of one that is not there yet.
    """
    if runner is Runner.OWN:
        return ""
    files = {file: _source(file) for file in _FILES[runner]}
    if runner is Runner.PYTEST:
        files.update(hidden="\n".join(hidden), changed="\n".join(changed))
    else:
        files["runner"] = " ".join([runner, *_SIGNS[runner]])
    return "\n".join(
        [
            f"mkdir -m 700 {folder} || exit 1",
            *(_written(f"{folder}/{file}", text) for file, text in files.items()),
            f'export PYTHONPATH={folder}"${{PYTHONPATH:+:$PYTHONPATH}}"',
            *_exports(runner),
            f"exec {SECRET_FD}< <(printf '%s\\n' \"$palestra_key\")",
            "unset palestra_key",
        ]
    )


def _exports(runner: Runner) -> Sequence[str]:
    if runner is Runner.PYTEST:
        # Before the plugins that are installed, which PYTEST_PLUGINS would come after.
        return ['export PYTEST_ADDOPTS="-p palestra_pytest${PYTEST_ADDOPTS:+ $PYTEST_ADDOPTS}"']
    if runner is Runner.SYMPY:
        # Without a seed it runs the tests in a child, to which no descriptor comes.
        return ['export PYTHONHASHSEED="${PYTHONHASHSEED:-0}"']
    return []


def _quietly(steps: str, *, folder: bool = False) -> str:
    """``steps`` without the trace and the options of the script around them."""
    if not steps:
        return ""
    home = 'palestra_was=$PWD; cd -- "$palestra_home"\n' if folder else ""
    back = 'cd -- "$palestra_was"\n' if folder else ""
    return (
        "{ palestra_set=$-; set +xeu; } 2>/dev/null\n"
        f"{home}{steps}\n{back}"
        "{ case $palestra_set in *e*) set -e ;; esac\n"
        "case $palestra_set in *u*) set -u ;; esac\n"
        "case $palestra_set in *x*) set -x ;; esac; } 2>/dev/null\n"
    )


def _written(path: str, text: str) -> str:
    return f"printf %s {shlex.quote(text)} >{path} || exit 1"


@cache
def _source(name: str) -> str:
    folder = resources.files("palestra.environment.grading") / "witness"
    return (folder / name).read_text(encoding="utf-8")
