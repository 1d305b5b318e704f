"""One episode's conversations with the policy: its tree, its budget, and what runs in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from palestra.errors import GatewayError
from palestra.policy.gateway.retries import Retries
from palestra.policy.gateway.said import Said
from palestra.policy.gateway.tree import TurnTree
from palestra.policy.rendering.protocol import Renderer
from palestra.records import Trace

Result = TypeVar("Result")


class UnknownSession(GatewayError):
    """No such session: never opened, taken, dropped, or expired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What a session decides in the agent's place; ``None`` leaves it to the agent.

    ``max_total_tokens`` bounds the ids of the whole trace: the contexts and the
    samples of every turn, each counted once. ``purpose`` says whether options that
    spoil logprobs are refused.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    max_total_tokens: int | None = None
    seed: int | None = None
    purpose: Literal["training", "evaluation"] | None = None


class Session:
    """One episode's conversations with the policy."""

    def __init__(self, session_id: str, limits: SessionLimits, renderer: Renderer) -> None:
        self.session_id = session_id
        self.limits = limits
        self.tree = TurnTree(renderer)
        self.retries = Retries()
        self.said = Said()
        self._opened_s = time.monotonic()
        self._reserved = 0
        self._asked = 0
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def trace(self) -> Trace:
        """The turns recorded so far."""
        return Trace(session_id=self.session_id, turns=self.tree.turns)

    @property
    def age_s(self) -> float:
        """Seconds since the session was opened."""
        return time.monotonic() - self._opened_s

    @property
    def busy(self) -> bool:
        """Whether a request is being answered now."""
        return bool(self._running)

    @property
    def room(self) -> int | None:
        """Ids that the token budget still allows; ``None`` without a budget."""
        if self.limits.max_total_tokens is None:
            return None
        return self.limits.max_total_tokens - self.tree.num_ids - self._reserved

    @contextmanager
    def reserving(self, num_ids: int) -> Iterator[None]:
        """Hold a part of the budget, so that requests at once cannot overdraw it together."""
        self._reserved += num_ids
        try:
            yield
        finally:
            self._reserved -= num_ids

    def next_seed(self) -> int | None:
        """A seed of its own for each request: repeating one would repeat the answer."""
        if self.limits.seed is None:
            return None
        self._asked += 1
        return (self.limits.seed * 1_000_003 + self._asked) % 2**31

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await ``work``, cancelling it when the session is closed meanwhile.

        Raises:
            UnknownSession: the session was taken or dropped before the work was done.
        """
        task = asyncio.ensure_future(work)
        self._running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._closed and task.cancelled() and not _being_cancelled():
                raise UnknownSession(
                    f"session {self.session_id} was taken or dropped while it was answered"
                ) from None
            raise
        finally:
            self._running.discard(task)

    def close(self) -> None:
        """End what runs; its turns are not recorded."""
        self._closed = True
        for task in self._running:
            task.cancel()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
