"""A task that needs nothing but git, and shorthands, for the tests of agents and episodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from palestra.config import AgentSection
from palestra.environment.agents.mini import MiniAgent
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.sandboxes.protocol import SandboxLimits, SandboxSpec
from palestra.records import HOST_IMAGE, Task, TaskFile

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
FIX = "sed -i 's/a - b/a + b/' calc.py"
GOLD = """\
diff --git a/calc.py b/calc.py
--- a/calc.py
+++ b/calc.py
@@ -1,2 +1,2 @@
 def add(a, b):
-    return a - b
+    return a + b
"""

EVAL_SCRIPT = """\
: '>>>>> Start Test Output'
pytest -rA test_calc.py
: '>>>>> End Test Output'
"""


def make_task(instance_id: str = "toy__calc-1", *, gold_patch: str = GOLD) -> Task:
    return Task(
        instance_id=instance_id,
        repo="toy/calc",
        base_commit="HEAD",
        problem_statement="add(1, 2) is -1, but should be 3.",
        image=HOST_IMAGE,
        fail_to_pass=("test_calc.py::test_add",),
        pass_to_pass=("test_calc.py::test_kept",),
        gold_patch=gold_patch,
        test_patch="",
        eval_script=EVAL_SCRIPT,
        log_parser="parse_log_pytest",
        files=(TaskFile(path="calc.py", text="def add(a, b):\n    return a - b\n"),),
    )


def toy_spec(task: Task) -> SandboxSpec:
    return SandboxSpec.for_task(task, SandboxLimits(), {})


def endpoint(base_url: str, **sampling: object) -> ModelEndpoint:
    return ModelEndpoint(base_url=base_url, model="scripted", sampling=sampling, timeout_s=20)


def mini(
    *, step_timeout_s: float = 20, time_limit_s: float = 60, prompt: str = "kata", **section: int
) -> MiniAgent:
    return MiniAgent(
        AgentSection(prompt=prompt, **section),
        step_timeout_s=step_timeout_s,
        time_limit_s=time_limit_s,
    )


async def until(holds: Callable[[], bool], *, what: str, timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"did not happen in {timeout_s} s: {what}"
        await asyncio.sleep(0.005)
