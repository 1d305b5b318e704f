"""Requests that a client sent before, so that a retry is answered and not sampled again.

A client that gave up closes its connection, which cancels its turn before it is
recorded. What is left are answers that got lost on their way, and retries that
overtake the end of the connection before them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from palestra.policy.gateway.answers import Answer
from palestra.policy.gateway.asks import Attempt

KEPT = 8
"""Answers of a session that a retry can still get; their ids are in the ledger anyway."""

Request = tuple[str | None, bytes]


class Retries:
    """What of one session is being answered, and what was answered last."""

    def __init__(self) -> None:
        self._running: dict[Request, asyncio.Future[None]] = {}
        self._answered: OrderedDict[Request, tuple[int, Answer]] = OrderedDict()

    async def earlier(self, attempt: Attempt, history: bytes) -> tuple[int, Answer] | None:
        """The turn and the answer of the same request, waiting for it while it runs.

        ``None`` where there is none, where it failed, or where the request does not
        say that it is a retry: then it wants an answer of its own.
        """
        if attempt.key is None and not attempt.repeated:
            return None
        request = (attempt.key, history)
        while (running := self._running.get(request)) is not None:
            await asyncio.wait({running})
        return self._answered.get(request)

    @contextmanager
    def answering(self, attempt: Attempt, history: bytes) -> Iterator[None]:
        """Let retries of this request wait while it is answered."""
        request = (attempt.key, history)
        if request in self._running:  # a sibling that asked for a sample of its own
            yield
            return
        ended = asyncio.get_running_loop().create_future()
        self._running[request] = ended
        try:
            yield
        finally:
            del self._running[request]
            ended.set_result(None)

    def answered(self, attempt: Attempt, history: bytes, turn: int, answer: Answer) -> None:
        """Keep an answer for a retry of its request."""
        self._answered[attempt.key, history] = (turn, answer)
        self._answered.move_to_end((attempt.key, history))
        while len(self._answered) > KEPT:
            self._answered.popitem(last=False)
