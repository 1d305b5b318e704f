"""The ledger: the traces of all sessions, each taken exactly once.

Everything here runs in one event loop and never waits between looking and
changing, so two takers of one session cannot both get it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from palestra.errors import GatewayError
from palestra.policy.gateway.session import Session, SessionLimits, UnknownSession
from palestra.policy.gateway.spill import SpillFolder
from palestra.policy.rendering.protocol import Renderer
from palestra.records import Trace

__all__ = ["Ledger", "LedgerFull", "Session", "SessionLimits", "UnknownSession"]

logger = logging.getLogger(__name__)


class LedgerFull(GatewayError):
    """As many sessions are open as the ledger may hold."""


class Ledger:
    """Holds the open sessions.

    Args:
        renderer: of every session's tree.
        max_sessions: most sessions open at once.
        idle_timeout_s: a session that nobody asked for this long may be forgotten.
        max_memory_bytes: turns above this go to ``spill``, those of the session that
            was not asked for the longest time first; sessions at work stay.
        spill: where those turns go; ``None``: everything stays in memory.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        renderer: Renderer,
        *,
        max_sessions: int = 4096,
        idle_timeout_s: float = 6 * 3600.0,
        max_memory_bytes: int = 1 << 30,
        spill: SpillFolder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renderer = renderer
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._max_memory_bytes = max_memory_bytes
        self._spill = spill
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._last_used_s: dict[str, float] = {}
        self._in_memory: dict[str, int] = {}  # bytes of the sessions that are loaded
        self._memory_bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def memory_bytes(self) -> int:
        """About what the turns take that are in memory."""
        return self._memory_bytes

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
        """An open session, which is then not idle; its turns are in memory.

        Raises:
            UnknownSession: there is none of this id.
            GatewayError: its turns were on the disk and cannot be read.
        """
        self.expire()
        session = self._sessions.get(session_id)
        if session is None:
            raise UnknownSession(
                f"no session {session_id!r}", hint="it was taken, dropped, expired or never opened"
            )
        self._touch(session_id)
        if not session.tree.loaded and self._spill is not None:
            session.tree.load(self._spill.read(session_id))
            self.grown(session)
        return session

    def grown(self, session: Session) -> None:
        """Take account of a session that got more turns, and make room where that is due."""
        session_id = session.session_id
        if session_id not in self._sessions:
            return
        num_bytes = session.tree.packed.num_bytes
        self._memory_bytes += num_bytes - self._in_memory.get(session_id, 0)
        self._in_memory[session_id] = num_bytes
        if self._spill is not None and self._memory_bytes > self._max_memory_bytes:
            self._make_room(self._spill, keeping=session_id)

    def take(self, session_id: str) -> Trace:
        """Hand out the trace and forget the session, ending what still runs in it.

        Raises:
            UnknownSession: there is none of this id; a second taker gets this.
            GatewayError: its turns were on the disk and cannot be read.
        """
        session = self.get(session_id)
        self._forget(session_id)
        return session.trace

    def drop(self, session_id: str) -> None:
        """Forget a session and its trace.

        Raises:
            UnknownSession: there is none of this id.
        """
        if session_id not in self._sessions:
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

    def _make_room(self, spill: SpillFolder, *, keeping: str) -> None:
        """Write sessions to the disk, the longest unused first, until the rest fits."""
        for session_id in self._last_used_s:
            if self._memory_bytes <= self._max_memory_bytes:
                return
            session = self._sessions[session_id]
            if session_id == keeping or session_id not in self._in_memory or session.busy:
                continue
            try:
                spill.write(session_id, session.tree.packed)
            except OSError as error:
                # Nothing is lost: the turns stay where they are.
                logger.warning("palestra: the ledger cannot write to its disk: %s", error)
                return
            session.tree.unload()
            self._memory_bytes -= self._in_memory.pop(session_id)

    def _touch(self, session_id: str) -> None:
        self._last_used_s.pop(session_id, None)
        self._last_used_s[session_id] = self._clock()

    def _forget(self, session_id: str) -> None:
        del self._last_used_s[session_id]
        self._memory_bytes -= self._in_memory.pop(session_id, 0)
        self._sessions.pop(session_id).close()
        if self._spill is not None:
            self._spill.remove(session_id)
