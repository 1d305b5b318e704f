"""The grader on real sandboxes: what resolves, what does not, and whose fault it is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from grading_toys import GOLD, MODULE, TESTS, toy_grader, toy_task

from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits
from palestra.errors import GradingError, GradingTimeout, TaskError
from palestra.tasks.swegym import END_MARKER, START_MARKER


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def backend(state_dir: Path) -> BubblewrapBackend:
    return BubblewrapBackend(store=None, state_dir=state_dir)


def rewrite(body: str) -> str:
    """A patch that replaces the whole module by ``body``."""
    old, new = MODULE.splitlines(), body.splitlines()
    lines = [*(f"-{line}" for line in old), *(f"+{line}" for line in new)]
    hunk = f"@@ -1,{len(old)} +1,{len(new)} @@"
    return "\n".join(["--- a/calc.py", "+++ b/calc.py", hunk, *lines, ""])


async def test_the_gold_patch_resolves(backend: SandboxBackend) -> None:
    verdict = await toy_grader(backend).grade(toy_task(), GOLD)
    assert verdict.resolved, verdict.log
    assert verdict.patch_applied
    assert set(verdict.statuses.values()) == {"PASSED"}
    assert START_MARKER in verdict.log
    assert verdict.duration_s > 0


@pytest.mark.parametrize("patch", ["", " \n"])
async def test_an_empty_patch_does_not(backend: SandboxBackend, patch: str) -> None:
    verdict = await toy_grader(backend).grade(toy_task(), patch)
    assert not verdict.resolved
    assert verdict.patch_applied
    assert len(verdict.fail_to_pass.failure) == 2
    assert len(verdict.pass_to_pass.success) == 1, verdict.log


async def test_a_patch_whose_context_moved_is_applied_with_fuzz(backend: SandboxBackend) -> None:
    moved = GOLD.replace(" def double(x):", " def double(number):")
    verdict = await toy_grader(backend).grade(toy_task(), moved)
    assert verdict.resolved, verdict.log


async def test_a_patch_without_a_last_newline_is_applied(backend: SandboxBackend) -> None:
    assert (await toy_grader(backend).grade(toy_task(), GOLD.removesuffix("\n"))).resolved


@pytest.mark.parametrize(
    "patch",
    [
        "this is not a patch",
        GOLD.replace("return x + x + 1", "return something else"),
        GOLD + GOLD.replace("calc.py", "missing.py"),  # half of it would apply
        GOLD.replace("calc.py", "../calc.py"),
        GOLD.replace("b/calc.py", "b/.git/config"),
    ],
)
async def test_a_patch_that_cannot_be_applied_is_an_honest_unsolved(
    backend: SandboxBackend, patch: str
) -> None:
    verdict = await toy_grader(backend).grade(toy_task(), patch)
    assert not verdict.resolved
    assert not verdict.patch_applied
    assert verdict.statuses == {}
    assert verdict.log


async def test_a_candidate_file_in_the_place_of_a_hidden_test_is_replaced(
    backend: SandboxBackend,
) -> None:
    names = ("one", "two", "kept")
    faked = "".join(f"+print('PASSED test_calc.py::test_{name}')\n" for name in names)
    patch = f"--- /dev/null\n+++ b/test_calc.py\n@@ -0,0 +1,3 @@\n{faked}"
    verdict = await toy_grader(backend).grade(toy_task(), patch)
    assert not verdict.resolved, verdict.log
    assert len(verdict.fail_to_pass.failure) == 2


async def test_tests_that_hang_because_of_the_patch_are_unresolved(
    backend: SandboxBackend,
) -> None:
    patch = rewrite("import time\ndef double(x):\n    time.sleep(600)\n")
    verdict = await toy_grader(backend, eval_timeout_s=1.5).grade(toy_task(), patch)
    assert not verdict.resolved
    assert verdict.patch_applied
    assert verdict.pass_to_pass.success == ("test_calc.py::test_kept",), verdict.log
    assert len(verdict.fail_to_pass.failure) == 2


async def test_tests_that_the_patch_ends_early_are_unresolved(backend: SandboxBackend) -> None:
    patch = rewrite("import os\ndef double(x):\n    os._exit(0)\n")
    verdict = await toy_grader(backend).grade(toy_task(), patch)
    assert not verdict.resolved
    assert len(verdict.fail_to_pass.failure) == 2


async def test_a_script_that_ends_before_the_end_marker_is_unresolved(
    backend: SandboxBackend,
) -> None:
    script = TESTS.replace(f": '{END_MARKER}'", "exit 0")
    verdict = await toy_grader(backend).grade(toy_task(eval_script=script), GOLD)
    assert not verdict.resolved
    assert len(verdict.fail_to_pass.success) == 2


async def test_a_script_that_hangs_before_the_tests_is_infrastructure(
    backend: SandboxBackend,
) -> None:
    task = toy_task(eval_script="echo installing; sleep 600\n" + TESTS)
    with pytest.raises(GradingTimeout, match=r"toy__calc-1: the tests did not start") as caught:
        await toy_grader(backend, eval_timeout_s=1.0).grade(task, GOLD)
    assert caught.value.log == "installing\n"


@pytest.mark.parametrize("code", [0, 3, 97])
async def test_a_script_that_ends_before_the_tests_is_infrastructure(
    backend: SandboxBackend, code: int
) -> None:
    task = toy_task(eval_script=f"echo no such file; exit {code}\n" + TESTS)
    with pytest.raises(GradingError, match=rf"ended with {code} before its tests.*no such file"):
        await toy_grader(backend).grade(task, GOLD)


async def test_an_unknown_log_parser_is_the_users_to_mend(backend: SandboxBackend) -> None:
    with pytest.raises(TaskError, match="parse_log_jest"):
        await toy_grader(backend).grade(toy_task(log_parser="parse_log_jest"), GOLD)


async def test_pip_without_a_network_gives_up_at_once(backend: SandboxBackend) -> None:
    install = 'echo "pip: $PIP_NO_INDEX $PIP_RETRIES ${PIP_NO_BUILD_ISOLATION:-isolated}"\n'
    task = toy_task(eval_script=install + TESTS)
    verdict = await toy_grader(backend).grade(task, GOLD)
    assert "pip: 1 0 isolated" in verdict.log
    build = "--- /dev/null\n+++ b/fast.pyx\n@@ -0,0 +1 @@\n+# nothing\n"
    verdict = await toy_grader(backend).grade(task, GOLD + build)
    assert verdict.resolved
    assert "pip: 1 0 0" in verdict.log


async def test_gradings_at_once_do_not_meet(backend: SandboxBackend) -> None:
    grader = toy_grader(backend)
    patches = [GOLD, "", GOLD, "nonsense", "", GOLD]
    verdicts = await asyncio.gather(*(grader.grade(toy_task(), patch) for patch in patches))
    assert [v.resolved for v in verdicts] == [True, False, True, False, False, True]
    assert [v.patch_applied for v in verdicts] == [True, True, True, False, True, True]


async def test_a_cancelled_grading_ends_at_once(backend: SandboxBackend) -> None:
    grader = toy_grader(backend)
    task = toy_task(eval_script="sleep 600\n")
    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await grader.grade(task, GOLD)
    assert time.monotonic() - started_s < 10


async def test_a_patch_that_kills_everything_it_can_is_unresolved(backend: SandboxBackend) -> None:
    patch = rewrite("import os\ndef double(x):\n    os.kill(-1, 9)\n")
    verdict = await toy_grader(backend).grade(toy_task(), patch)
    assert not verdict.resolved
    assert len(verdict.fail_to_pass.failure) == 2


async def test_a_patch_that_eats_the_memory_is_unresolved(backend: SandboxBackend) -> None:
    patch = rewrite("def double(x):\n    return [bytearray(1 << 26) for _ in range(1 << 12)]\n")
    grader = SandboxGrader(
        backend, SandboxLimits(memory_bytes=512 << 20, disk_bytes=64 << 20), eval_timeout_s=30
    )
    verdict = await grader.grade(toy_task(), patch)
    assert not verdict.resolved
    assert verdict.pass_to_pass.success == ("test_calc.py::test_kept",), verdict.log


async def test_a_patch_that_prints_without_end_is_unresolved(backend: SandboxBackend) -> None:
    patch = rewrite("def double(x):\n    while True:\n        print('x' * 100_000)\n")
    verdict = await toy_grader(backend, eval_timeout_s=2.0).grade(toy_task(), patch)
    assert not verdict.resolved
    assert len(verdict.log) < 20 << 20


async def test_a_long_patch_and_a_long_script_are_no_trouble(backend: SandboxBackend) -> None:
    num_lines = 20_000
    lines = "".join(f"+# line {i} of a long file, which says nothing\n" for i in range(num_lines))
    patch = GOLD + f"--- /dev/null\n+++ b/long.py\n@@ -0,0 +1,{num_lines} @@\n{lines}"
    padding = "# a comment that pads the script\n" * 10_000
    verdict = await toy_grader(backend).grade(toy_task(eval_script=padding + TESTS), patch)
    assert verdict.resolved, verdict.log[-2000:]
