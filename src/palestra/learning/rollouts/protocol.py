"""What the scheduler's parts need from the environment and from the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from palestra.config import SamplingSection
from palestra.records import EpisodeResult, Rollout, Task, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session of the gateway: one episode's own model endpoint."""

    session_id: str
    base_url: str  # ends in /v1


class Environment(Protocol):
    """Runs episodes."""

    async def run(
        self,
        task: Task,
        *,
        sglang_url: str,
        sampling: SamplingSection,
        idempotency_key: str,
    ) -> EpisodeResult:
        """Run one episode of ``task`` with the policy at ``sglang_url``.

        Raises:
            EnvironmentUnavailable: the environment cannot be reached or broke its protocol.
            TaskError: it cannot use the task.
        """
        ...


class Gateway(Protocol):
    """Opens sessions and hands out what was sampled in them."""

    async def open(
        self,
        sampling: SamplingSection,
        *,
        max_total_tokens: int | None = None,
        seed: int | None = None,
    ) -> Session:
        """Open a session whose budget overrides what the agent asks for.

        Raises:
            GatewayError: the gateway cannot be reached or refuses.
        """
        ...

    async def take(self, session_id: str) -> Trace:
        """Take the trace of a session, which ends the session; works exactly once.

        Raises:
            GatewayError: the session is unknown, or the gateway cannot be reached.
        """
        ...

    async def drop(self, session_id: str) -> None:
        """End a session and forget its trace; an unknown one is no error.

        Raises:
            GatewayError: the gateway cannot be reached.
        """
        ...


class Collector(Protocol):
    """Makes one rollout."""

    async def collect(self, task: Task, rollout_id: str) -> Rollout:
        """Run one attempt at ``task``; trouble of the infrastructure is returned, not raised.

        Raises:
            UsageError: the user must mend something before any episode can run.
        """
        ...


class RolloutObserver(Protocol):
    """Is told of each rollout as its episode begins and when it has ended."""

    def on_episode_begin(self, rollout_id: str) -> None:
        """Take note; must return at once."""
        ...

    def on_episode(self, rollout: Rollout) -> None:
        """Take note; must return at once."""
        ...
