"""The ledger: the traces of all sessions, each taken exactly once.

Everything here runs in one event loop and never waits between looking and
changing, so two takers of one session cannot both get it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from palestra.errors import GatewayError
from palestra.policy.gateway.tree import TurnTree
from palestra.policy.rendering.protocol import Renderer
from palestra.records import Trace

Result = TypeVar("Result")


class UnknownSession(GatewayError):
    """No such session: never opened, taken, dropped, or expired."""


class LedgerFull(GatewayError):
    """As many sessions are open as the ledger may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What a session decides in the agent's place; ``None`` leaves it to the agent.

    ``max_total_tokens`` bounds the ids of the whole trace: the contexts and the
    samples of every turn, each counted once.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    max_total_tokens: int | None = None
    seed: int | None = None


class Session:
    """One episode's conversations with the policy."""

    def __init__(self, session_id: str, limits: SessionLimits, renderer: Renderer) -> None:
        self.session_id = session_id
        self.limits = limits
        self.tree = TurnTree(renderer)
        self._reserved = 0
        self._asked = 0
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def trace(self) -> Trace:
        """The turns recorded so far."""
        return Trace(session_id=self.session_id, turns=self.tree.turns)

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


class Ledger:
    """Holds the open sessions.

    Args:
        renderer: of every session's tree.
        max_sessions: most sessions open at once.
        idle_timeout_s: a session that nobody asked for this long may be forgotten.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        renderer: Renderer,
        *,
        max_sessions: int = 4096,
        idle_timeout_s: float = 6 * 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renderer = renderer
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._last_used_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, limits: SessionLimits) -> Session:
        """Start a session under an unguessable id.

        Raises:
            LedgerFull: too many are open, and none of them is idle.
        """
        self.expire()
        if len(self._sessions) >= self._max_sessions:
            raise LedgerFull(
                f"{len(self._sessions)} sessions are open",
                hint="take or drop finished sessions, or raise max_sessions",
            )
        session = Session(secrets.token_hex(16), limits, self._renderer)
        self._sessions[session.session_id] = session
        self._touch(session.session_id)
        return session

    def get(self, session_id: str) -> Session:
        """An open session, which is then not idle.

        Raises:
            UnknownSession: there is none of this id.
        """
        self.expire()
        session = self._sessions.get(session_id)
        if session is None:
            raise UnknownSession(
                f"no session {session_id!r}", hint="it was taken, dropped, expired or never opened"
            )
        self._touch(session_id)
        return session

    def take(self, session_id: str) -> Trace:
        """Hand out the trace and forget the session, ending what still runs in it.

        Raises:
            UnknownSession: there is none of this id; a second taker gets this.
        """
        session = self.get(session_id)
        self._forget(session_id)
        return session.trace

    def drop(self, session_id: str) -> None:
        """Forget a session and its trace.

        Raises:
            UnknownSession: there is none of this id.
        """
        self.get(session_id)
        self._forget(session_id)

    def expire(self) -> int:
        """Forget the sessions that were idle too long; how many those were."""
        latest = self._clock() - self._idle_timeout_s
        idle = []
        # Sessions stand in the order of their last use, so the first fresh one ends the search.
        for session_id, used_s in self._last_used_s.items():
            if used_s > latest:
                break
            if not self._sessions[session_id].busy:
                idle.append(session_id)
        for session_id in idle:
            self._forget(session_id)
        return len(idle)

    def close(self) -> None:
        """Forget every session."""
        for session_id in list(self._sessions):
            self._forget(session_id)

    def _touch(self, session_id: str) -> None:
        self._last_used_s.pop(session_id, None)
        self._last_used_s[session_id] = self._clock()

    def _forget(self, session_id: str) -> None:
        del self._last_used_s[session_id]
        self._sessions.pop(session_id).close()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
