"""The queue in front of the episodes: a bound on how many are at work, and whose turn is next."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from palestra.errors import QueueTimeout


class FairQueue:
    """Gives out a fixed number of places.

    Fair means: each client has a line of its own, in which the first to come is the first
    to be served; a free place goes to the clients with somebody in line by turns. So a
    client that sends a thousand requests at once delays another's first by one episode at
    most for each place. Requests that do not say who they are share one line.

    Args:
        num_places: how many may be at work at once.
    """

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, client: str, *, timeout_s: float) -> AsyncIterator[None]:
        """Hold a place while the block runs.

        Args:
            client: whose line to wait in.
            timeout_s: seconds to wait at most.

        Raises (on entry):
            QueueTimeout: no place became free in time.
        """
        await self._enter(client, timeout_s)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, client: str, timeout_s: float) -> None:
        if self._num_free:
            self._num_free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(client, deque()).append(turn)
        try:
            await asyncio.wait({turn}, timeout=timeout_s)
        except asyncio.CancelledError:
            self._give_up(client, turn)
            raise
        if not turn.done():
            self._give_up(client, turn)
            raise QueueTimeout(
                f"no place became free in {timeout_s:g} s",
                hint="raise --concurrency or --queue-timeout, or send fewer requests at once",
            )

    def _leave(self) -> None:
        """Hand the place to whose turn it is."""
        if not self._lines:
            self._num_free += 1
            return
        client, line = self._lines.popitem(last=False)
        line.popleft().set_result(None)
        if line:
            self._lines[client] = line

    def _give_up(self, client: str, turn: asyncio.Future[None]) -> None:
        if turn.done():  # the place came in the moment of giving up
            self._leave()
            return
        line = self._lines[client]
        line.remove(turn)
        if not line:
            del self._lines[client]
