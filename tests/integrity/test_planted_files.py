"""Files planted beside a wrong fix, on a real pytest: none pays, and each did before the rule.

Every attack is graded as recipes grade, and with everything let through, which must resolve, or
the first would prove nothing. The second line of defence, the signed report, stops each as well.
"""

from __future__ import annotations

import base64
import importlib
import io
import tarfile
from functools import cache
from pathlib import Path

import pytest

from palestra.config import GradingSection
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits
from palestra.records import HOST_IMAGE, Task, TaskFile
from palestra.tasks.swegym import END_MARKER, START_MARKER

MODULE = "def double(x):\n    return x + x + 1\n"
TEST_FILE = "test_calc.py"
TESTS = """\
import calc


def test_kept():
    assert callable(calc.double)


def test_one():
    assert calc.double(1) == 2
"""
NAMES = ("test_kept", "test_one")

PLUGIN = """\
import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.outcome = "passed"
    report.longrepr = None
"""
FORGED = f"for name in {NAMES}:\n    print(f'PASSED {TEST_FILE}::{{name}}')\n"
WRONG = """\
diff --git a/calc.py b/calc.py
--- a/calc.py
+++ b/calc.py
@@ -1,2 +1,2 @@
 def double(x):
-    return x + x + 1
+    return x + x + 2
"""

ATTACKS = {
    "conftest": {"conftest.py": PLUGIN},
    "sitecustomize": {
        "sitecustomize.py": f"import os, sys\nif 'pytest' in ' '.join(sys.orig_argv):\n"
        f"    for name in {NAMES}:\n        print(f'PASSED {TEST_FILE}::{{name}}')\n"
        "    sys.stdout.flush()\n    os._exit(0)\n"
    },
    "pytest.ini": {"pytest.ini": "[pytest]\naddopts = -p evil\n", "evil.py": PLUGIN},
    "tox.ini": {"tox.ini": "[pytest]\naddopts = -p evil\n", "evil.py": PLUGIN},
    "setup.cfg": {"setup.cfg": "[tool:pytest]\naddopts = -p evil\n", "evil.py": PLUGIN},
    "pyproject.toml": {
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-p evil"\n',
        "evil.py": PLUGIN,
    },
    "entry point": {
        "evil-1.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n",
        "evil-1.dist-info/METADATA": "Name: evil\nVersion: 1\n",
        "evil.py": PLUGIN,
    },
    "module in the place of pytest": {"pytest.py": FORGED},
    "package in the place of pytest": {
        "pytest/__init__.py": "",
        "pytest/__main__.py": FORGED,
    },
}


@cache
def pytest_archive() -> str:
    """Our pytest and what it needs, as the base64 of a tarball: sandboxes do not see ours."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging"):
            folder = Path(str(importlib.import_module(name).__file__)).parent
            archive.add(folder, name)  # with what is compiled: that saves a second each
    return base64.encodebytes(packed.getvalue()).decode()


def added(path: str, text: str) -> str:
    lines = text.splitlines()
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    hunk = f"@@ -0,0 +1,{len(lines)} @@\n" if lines else ""
    return (head if lines else head.split("---")[0]) + hunk + "".join(f"+{x}\n" for x in lines)


@pytest.fixture
def task() -> Task:
    test_patch = added(TEST_FILE, TESTS)
    # Plugins that the host's Python may have are only slow.
    options = "-rA -p no:cacheprovider -p no:benchmark -p no:hypothesispytest"
    script = f"""\
mkdir /tmp/site && base64 -d <<'EOF' | tar xz -C /tmp/site
{pytest_archive()}EOF
git apply - <<'EOF'
{test_patch}EOF
echo '{START_MARKER}'
# As with an editable installation, whose .pth puts the repository on the path.
PYTHONPATH=$PWD:/tmp/site python3 -B -m pytest {options} {TEST_FILE} 2>&1
echo '{END_MARKER}'
"""
    return Task(
        instance_id="toy__planted-1",
        repo="toy/calc",
        base_commit="HEAD",
        problem_statement="double(1) is 3",
        image=HOST_IMAGE,
        fail_to_pass=(f"{TEST_FILE}::test_one",),
        pass_to_pass=(f"{TEST_FILE}::test_kept",),
        gold_patch=WRONG.replace("x + x + 2", "x + x"),
        test_patch=test_patch,
        eval_script=script,
        log_parser="parse_log_pytest",
        files=(TaskFile(path="calc.py", text=MODULE),),
    )


@pytest.fixture
def backend(tmp_path: Path) -> SandboxBackend:
    return BubblewrapBackend(store=None, state_dir=tmp_path)


def grader(backend: SandboxBackend, **section: object) -> SandboxGrader:
    return SandboxGrader(
        backend,
        SandboxLimits(),
        eval_timeout_s=60,
        section=GradingSection.model_validate(section),
    )


@pytest.mark.parametrize("name", ATTACKS)
async def test_planted_files_do_not_pay(backend: SandboxBackend, task: Task, name: str) -> None:
    patch = WRONG + "".join(added(path, text) for path, text in ATTACKS[name].items())

    verdict = await grader(backend).grade(task, patch)
    assert not verdict.resolved, verdict.log
    assert verdict.patch_applied, verdict.log
    assert verdict.fail_to_pass.failure, verdict.log
    assert verdict.refused, "the attack is named in the verdict"
    assert not verdict.tampered

    defenceless = await grader(backend, allow=["*"], signed=False).grade(task, patch)
    assert defenceless.resolved, f"the attack does not work at all:\n{defenceless.log}"

    second = await grader(backend, allow=["*"]).grade(task, patch)
    assert (second.resolved, second.tampered) == (False, True), second.log

    fatal = await grader(backend, on_refused="tampered").grade(task, patch)
    assert fatal.tampered
    assert fatal.refused == verdict.refused


@pytest.mark.parametrize("name", ["conftest", "module in the place of pytest"])
async def test_an_honest_fix_is_worth_the_same_beside_refused_files(
    backend: SandboxBackend, task: Task, name: str
) -> None:
    patch = task.gold_patch + "".join(added(p, text) for p, text in ATTACKS[name].items())
    assert (await grader(backend).grade(task, patch)).resolved
    fatal = await grader(backend, on_refused="tampered").grade(task, patch)
    assert (fatal.resolved, fatal.tampered) == (False, True)


async def test_tests_of_the_agents_own_stand_for_nothing(
    backend: SandboxBackend, task: Task
) -> None:
    own = added(TEST_FILE, TESTS.replace("== 2", "== 4"))
    verdict = await grader(backend, allow=["*"]).grade(task, WRONG + own)
    assert not verdict.resolved, verdict.log
    assert not verdict.findings
    assert [part.reason for part in verdict.refused] == ["a file of the hidden tests"]
    assert (await grader(backend).grade(task, task.gold_patch + own)).resolved
