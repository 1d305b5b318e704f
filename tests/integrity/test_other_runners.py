"""Forged results where not pytest runs the tests: unittest's runner, and the runner of katas."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_repository import GOLD, MODULE, WRONG, added, grader, rewritten

from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxBackend
from palestra.records import HOST_IMAGE, Task, TaskFile
from palestra.tasks.source import load_tasks
from palestra.tasks.swegym import END_MARKER, START_MARKER

CASES = """\
import unittest

import calc


class Doubles(unittest.TestCase):
    def test_kept(self):
        self.assertTrue(callable(calc.double))

    def test_one(self):
        "Doubling one."
        self.assertEqual(calc.double(1), 2)

    def test_parts(self):
        for x in (2, 3):
            with self.subTest(x=x):
                self.assertEqual(calc.double(x), x + x)
"""
KEPT = "test_kept (test_cases.Doubles.test_kept)"
FLIPPING = ("Doubling one.", "test_parts (test_cases.Doubles.test_parts)")
LINES = "".join(f"{name} ... ok\n" for name in (KEPT, *FLIPPING))
PARENT = "open(f'/proc/{os.getppid()}/fd/1', 'w')"
WRONG_VALUE = "def double(x):\n    return x + x + 2\n"
ATTACKS = {
    "prints at exit": f"import atexit, os\natexit.register(os.write, 1, {LINES!r}.encode())\n",
    "prints and leaves": f"import os\nprint({LINES!r}, file={PARENT}, flush=True)\nos._exit(0)\n",
    "takes the failing methods away": """\
import unittest
for name in ('assertEqual', 'assertTrue'):
    setattr(unittest.TestCase, name, lambda self, *rest: None)
""",
    "runs no test": """\
import unittest
def run(self, result=None):
    result.startTest(self)
    result.addSuccess(self)
    result.stopTest(self)
unittest.TestCase.run = run
""",
}


@pytest.fixture
def backend(tmp_path: Path) -> SandboxBackend:
    return BubblewrapBackend(store=None, state_dir=tmp_path)


def unittest_task() -> Task:
    test_patch = added("test_cases.py", CASES)
    script = f"""\
git apply - <<'EOF'
{test_patch}EOF
echo '{START_MARKER}'
python3 -B -m unittest -v test_cases 2>&1
echo '{END_MARKER}'
"""
    return Task(
        instance_id="toy__unittest-1",
        repo="toy/calc",
        base_commit="HEAD",
        problem_statement="double(1) is 3",
        image=HOST_IMAGE,
        fail_to_pass=FLIPPING,
        pass_to_pass=(KEPT,),
        gold_patch=GOLD,
        test_patch=test_patch,
        eval_script=script,
        log_parser="parse_log_django",
        files=(TaskFile(path="calc.py", text=MODULE),),
    )


async def test_unittest_signs_honest_results(backend: SandboxBackend) -> None:
    gold = await grader(backend).grade(unittest_task(), GOLD)
    assert (gold.resolved, gold.findings) == (True, ()), gold.log
    wrong = await grader(backend).grade(unittest_task(), WRONG)
    assert (wrong.resolved, wrong.findings) == (False, ()), wrong.log
    assert wrong.fail_to_pass.failure == FLIPPING
    assert wrong.pass_to_pass.success == (KEPT,)


@pytest.mark.parametrize("name", ATTACKS)
async def test_forging_unittest_does_not_pay(backend: SandboxBackend, name: str) -> None:
    patch = rewritten(ATTACKS[name] + WRONG_VALUE)
    defenceless = await grader(backend, signed=False).grade(unittest_task(), patch)
    assert defenceless.resolved, f"the attack does not work at all:\n{defenceless.log}"
    verdict = await grader(backend).grade(unittest_task(), patch)
    assert (verdict.resolved, verdict.tampered) == (False, True), verdict.log
    assert verdict.findings


async def test_forging_a_kata_does_not_pay(backend: SandboxBackend) -> None:
    [task] = load_tasks("katas:train?seed=0&n=1&level=0")
    [module] = [f for f in task.files if f.path in task.gold_patch]
    tests = [*task.fail_to_pass, *task.pass_to_pass]
    lines = "".join(f"PASSED {name}\n" for name in tests)
    attack = (
        f"import os\nos.write(next(fd for fd in range(3, 99) if is_log(fd)), {lines!r}.encode())"
    )
    body = f"""\
import os, stat
def is_log(fd):
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False
{attack}
os._exit(0)
"""
    old, new = module.text.splitlines(), body.splitlines()
    patch = (
        f"--- a/{module.path}\n+++ b/{module.path}\n@@ -1,{len(old)} +1,{len(new)} @@\n"
        + "".join(f"-{line}\n" for line in old)
        + "".join(f"+{line}\n" for line in new)
    )
    defenceless = await grader(backend, signed=False).grade(task, patch)
    assert defenceless.resolved, f"the attack does not work at all:\n{defenceless.log}"
    verdict = await grader(backend).grade(task, patch)
    assert (verdict.resolved, verdict.tampered) == (False, True), verdict.log
    assert (await grader(backend).grade(task, task.gold_patch)).resolved
