"""The agent that knows the answer: it proves that a task can be solved and graded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from palestra.environment.agents.protocol import AgentExit, AgentResult, ModelEndpoint
from palestra.environment.sandboxes.protocol import Sandbox
from palestra.errors import GradingError
from palestra.records import Task

APPLY_TIMEOUT_S = 120.0
_TAIL_CHARS = 300


class GoldAgent:
    """Applies the task's own gold patch."""

    env: Mapping[str, str] = MappingProxyType({})

    @property
    def name(self) -> str:
        """``gold``."""
        return "gold"

    @property
    def needs_model(self) -> bool:
        """It does not."""
        return False

    async def run(
        self, task: Task, sandbox: Sandbox, endpoint: ModelEndpoint | None
    ) -> AgentResult:
        """Apply the patch.

        Raises:
            GradingError: it does not apply, so the task cannot be trusted.
            SandboxError: the sandbox failed.
        """
        if task.gold_patch.strip():
            await _apply(task, sandbox)
        return AgentResult(exit=AgentExit.SUBMITTED, submission=task.gold_patch)


async def _apply(task: Task, sandbox: Sandbox) -> None:
    path = f"/tmp/palestra-{sandbox.sandbox_id}-gold.patch"
    patch = task.gold_patch if task.gold_patch.endswith("\n") else task.gold_patch + "\n"
    await sandbox.write_file(path, patch.encode(errors="surrogateescape"))
    done = await sandbox.run(
        f"git -c safe.directory='*' apply --whitespace=nowarn {path}; code=$?; "
        f"rm -f {path}; exit $code",
        timeout_s=APPLY_TIMEOUT_S,
    )
    if done.exit_code != 0:
        raise GradingError(
            f"{task.instance_id}: its gold patch does not apply: {done.output[-_TAIL_CHARS:]}"
        )
