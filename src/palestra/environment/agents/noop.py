"""The agent that does nothing: it proves that a task is not solved from the start."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from palestra.environment.agents.protocol import AgentExit, AgentResult, ModelEndpoint
from palestra.environment.sandboxes.protocol import Sandbox
from palestra.records import Task


class NoopAgent:
    """Submits at once."""

    env: Mapping[str, str] = MappingProxyType({})

    @property
    def name(self) -> str:
        """``noop``."""
        return "noop"

    @property
    def needs_model(self) -> bool:
        """It does not."""
        return False

    async def run(
        self, task: Task, sandbox: Sandbox, endpoint: ModelEndpoint | None
    ) -> AgentResult:
        """Submit nothing."""
        return AgentResult(exit=AgentExit.SUBMITTED, submission="")
