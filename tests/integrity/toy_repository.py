"""A repository with a real pytest, whose task is to mend one function."""

from __future__ import annotations

import base64
import importlib
import io
import tarfile
from functools import cache
from pathlib import Path

from palestra.config import GradingSection
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits
from palestra.records import HOST_IMAGE, Task, TaskFile
from palestra.tasks.swegym import END_MARKER, START_MARKER

MODULE = "def double(x):\n    return x + x + 1\n"
TESTS = {
    "test_calc.py": """\
import calc


def test_kept():
    assert callable(calc.double)


def test_one():
    assert calc.double(1) == 2
""",
    "test_more.py": """\
import unittest

import calc


class TestMore(unittest.TestCase):
    def test_two(self):
        self.assertEqual(calc.double(2), 4)
""",
}
KEPT = "test_calc.py::test_kept"
FLIPPING = ("test_calc.py::test_one", "test_more.py::TestMore::test_two")
ALL = (KEPT, *FLIPPING)


def added(path: str, text: str) -> str:
    """A patch that brings a file."""
    lines = text.splitlines()
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    hunk = f"@@ -0,0 +1,{len(lines)} @@\n" if lines else ""
    return (head if lines else head.split("---")[0]) + hunk + "".join(f"+{x}\n" for x in lines)


def rewritten(text: str) -> str:
    """A patch that makes ``text`` of the module."""
    old, new = MODULE.splitlines(), text.splitlines()
    head = "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n"
    lines = [*(f"-{line}\n" for line in old), *(f"+{line}\n" for line in new)]
    return head + f"@@ -1,{len(old)} +1,{len(new)} @@\n" + "".join(lines)


GOLD = rewritten("def double(x):\n    return x + x\n")
WRONG = rewritten("def double(x):\n    return x + x + 2\n")


def toy_task() -> Task:
    """Two files of hidden tests, run by a pytest that comes along."""
    test_patch = "".join(added(path, text) for path, text in TESTS.items())
    # Plugins that the host's Python may have are only slow.
    options = "-rA -p no:cacheprovider -p no:benchmark -p no:hypothesispytest"
    script = f"""\
mkdir /tmp/site && base64 -d <<'EOF' | tar xz -C /tmp/site
{pytest_archive()}EOF
git apply - <<'EOF'
{test_patch}EOF
echo '{START_MARKER}'
# As with an editable installation, whose .pth puts the repository on the path.
PYTHONPATH=$PWD:/tmp/site python3 -B -m pytest {options} {" ".join(TESTS)} 2>&1
echo '{END_MARKER}'
"""
    return Task(
        instance_id="toy__integrity-1",
        repo="toy/calc",
        base_commit="HEAD",
        problem_statement="double(1) is 3",
        image=HOST_IMAGE,
        fail_to_pass=FLIPPING,
        pass_to_pass=(KEPT,),
        gold_patch=GOLD,
        test_patch=test_patch,
        eval_script=script,
        log_parser="parse_log_pytest",
        files=(TaskFile(path="calc.py", text=MODULE),),
    )


def grader(backend: SandboxBackend, **section: object) -> SandboxGrader:
    """Grades with settings of ``[grading]``."""
    return SandboxGrader(
        backend,
        SandboxLimits(),
        eval_timeout_s=60,
        section=GradingSection.model_validate(section),
    )


@cache
def pytest_archive() -> str:
    """Our pytest and what it needs, as the base64 of a tarball: sandboxes do not see ours."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging"):
            folder = Path(str(importlib.import_module(name).__file__)).parent
            archive.add(folder, name)  # with what is compiled: that saves a second each
    return base64.encodebytes(packed.getvalue()).decode()
