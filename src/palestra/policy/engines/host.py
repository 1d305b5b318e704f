"""What keeps an engine's server running: somebody else, or a process of ours."""

from __future__ import annotations

import asyncio
from typing import Protocol

NAMED_START_TIMEOUT_S = 60.0


class Host(Protocol):
    """Where a server runs."""

    @property
    def start_timeout_s(self) -> float:
        """Seconds that a server may take from its start until it is healthy."""
        ...

    async def up(self) -> None:
        """See to it that the server's process runs; it need not be healthy yet.

        Raises:
            EngineError: it cannot be started.
        """
        ...

    async def gone(self) -> str:
        """Wait until the process ends; how it ended."""
        ...

    async def down(self) -> None:
        """End the process, if it is ours, and wait until it is gone."""
        ...

    def last_words(self) -> str:
        """The last lines that the server printed; empty where nobody can know."""
        ...


class Elsewhere:
    """A server that somebody else runs."""

    start_timeout_s = NAMED_START_TIMEOUT_S

    async def up(self) -> None:
        """Hope."""

    async def gone(self) -> str:
        """Wait for ever: nobody tells us."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def down(self) -> None:
        """Leave it alone."""

    def last_words(self) -> str:
        """Nothing."""
        return ""
