"""A public fake: an agent that runs given commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from palestra.environment.agents.protocol import AgentExit, AgentResult, ModelEndpoint
from palestra.environment.sandboxes.protocol import Sandbox
from palestra.records import Task


class ScriptedAgent:
    """Runs the commands of a script, whatever they do, and ends as it is told.

    Args:
        commands_for: the commands for a task.
        ends: how it says that it stopped.
        step_timeout_s: seconds for one command.
    """

    env: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        commands_for: Callable[[Task], Sequence[str]],
        *,
        ends: AgentExit = AgentExit.SUBMITTED,
        step_timeout_s: float = 60.0,
    ) -> None:
        self._commands_for = commands_for
        self._ends = ends
        self._step_timeout_s = step_timeout_s

    @property
    def name(self) -> str:
        """``scripted``."""
        return "scripted"

    @property
    def needs_model(self) -> bool:
        """It does not."""
        return False

    async def run(
        self, task: Task, sandbox: Sandbox, endpoint: ModelEndpoint | None
    ) -> AgentResult:
        """Run the script.

        Raises:
            SandboxError: the sandbox failed.
        """
        commands = self._commands_for(task)
        started_s = time.monotonic()
        for command in commands:
            await sandbox.run(command, timeout_s=self._step_timeout_s)
        return AgentResult(
            exit=self._ends,
            num_turns=len(commands),
            num_tool_calls=len(commands),
            env_s=time.monotonic() - started_s,
        )
