"""Files planted beside a wrong fix, on a real pytest: none pays, and each did before the rule.

Every attack is graded as recipes grade, and with everything let through, which must resolve, or
the first would prove nothing. The second line of defence, the signed report, stops each as well.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_repository import ALL, GOLD, TESTS, WRONG, added, grader, rewritten, toy_task

from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxBackend

PLUGIN = """\
import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.outcome = "passed"
    report.longrepr = None
"""
FORGED = f"for name in {ALL}:\n    print(f'PASSED {{name}}')\n"

ATTACKS = {
    "conftest": {"conftest.py": PLUGIN},
    "sitecustomize": {
        "sitecustomize.py": f"import os, sys\nif 'pytest' in ' '.join(sys.orig_argv):\n"
        f"    for name in {ALL}:\n        print(f'PASSED {{name}}')\n"
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


@pytest.fixture
def backend(tmp_path: Path) -> SandboxBackend:
    return BubblewrapBackend(store=None, state_dir=tmp_path)


@pytest.mark.parametrize("name", ATTACKS)
async def test_planted_files_do_not_pay(backend: SandboxBackend, name: str) -> None:
    task = toy_task()
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
    backend: SandboxBackend, name: str
) -> None:
    task = toy_task()
    patch = GOLD + "".join(added(p, text) for p, text in ATTACKS[name].items())
    assert (await grader(backend).grade(task, patch)).resolved
    fatal = await grader(backend, on_refused="tampered").grade(task, patch)
    assert (fatal.resolved, fatal.tampered) == (False, True)


async def test_tests_of_the_agents_own_stand_for_nothing(backend: SandboxBackend) -> None:
    own = added("test_calc.py", TESTS["test_calc.py"].replace("== 2", "== 4"))
    wrong = rewritten("def double(x):\n    return 4\n")
    verdict = await grader(backend, allow=["*"]).grade(toy_task(), wrong + own)
    assert not verdict.resolved, verdict.log
    assert not verdict.findings
    assert [part.reason for part in verdict.refused] == ["a file of the hidden tests"]
    assert (await grader(backend).grade(toy_task(), GOLD + own)).resolved
