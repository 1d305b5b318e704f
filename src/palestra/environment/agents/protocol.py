"""What an agent is: something that works on a task inside a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from palestra.environment.sandboxes.protocol import Sandbox
from palestra.records import Message, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEndpoint:
    """An OpenAI-compatible endpoint that plays the policy for one episode.

    ``sampling`` are chat-completion fields (``temperature``, ``top_p``,
    ``max_tokens``, …) sent with every request.
    """

    base_url: str  # ends in /v1
    model: str
    api_key: str | None = field(default=None, repr=False)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0
    on_completion: Callable[[Mapping[str, Any]], None] | None = field(
        default=None, repr=False, compare=False
    )
    """Told of every answer as it came, in order: token fields are relayed, not interpreted."""


class AgentExit(StrEnum):
    """How the agent stopped; the episode turns it into an outcome."""

    SUBMITTED = "submitted"
    STEP_LIMIT = "step_limit"
    TIME_LIMIT = "time_limit"
    TOKEN_LIMIT = "token_limit"  # the context or the session's token budget is full
    COLLAPSED = "collapsed"  # the same command over and over
    MALFORMED = "malformed"  # too many format errors in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """What the agent did. A failure of the infrastructure is raised, not returned."""

    exit: AgentExit
    messages: tuple[Message, ...] = ()
    submission: str | None = None
    num_turns: int = 0
    num_tool_calls: int = 0
    model_s: float | None = None
    env_s: float | None = None


class Agent(Protocol):
    """Works on one task. Stateless between runs, so one agent serves many episodes."""

    @property
    def name(self) -> str:
        """``mini``, ``gold``, ``noop`` or another."""
        ...

    @property
    def needs_model(self) -> bool:
        """Whether :meth:`run` must be given an endpoint."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """Environment variables that the agent's sandbox is started with."""
        ...

    async def run(
        self, task: Task, sandbox: Sandbox, endpoint: ModelEndpoint | None
    ) -> AgentResult:
        """Work on ``task`` in ``sandbox`` until done or out of budget.

        Raises:
            InfraError: the sandbox or the endpoint failed.
        """
        ...
