"""The reading end of a command's output pipe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

_CHUNK_BYTES = 1 << 16
_CHUNKS_A_TURN = 16
_MAX_DISCARDED_BYTES = 64 << 20


class OutputPipe:
    """A pipe whose reading end is read on the event loop.

    Attributes:
        write_fd: the writing end, for the command; close it with :meth:`close_writer`
            once the command has it.
    """

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._feed: Callable[[bytes], None] | None = feed
        self._num_discarded_bytes = 0
        self._end = asyncio.Event()
        self._fd, self.write_fd = os.pipe()
        os.set_blocking(self._fd, False)
        self._loop.add_reader(self._fd, self._read)

    @property
    def ended(self) -> bool:
        """Whether every writer is gone, or we closed."""
        return self._end.is_set()

    def close_writer(self) -> None:
        """Close our copy of the writing end."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    async def drain(self, *, grace_s: float) -> None:
        """Read what is there; wait a little for the end where children keep it open."""
        self._read()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._end.wait()
        self._read()

    def discard(self) -> None:
        """Read on and throw away, a bounded amount: closing would kill who still writes."""
        self._feed = None

    def close(self) -> None:
        """Stop reading; who still writes gets EPIPE."""
        self.close_writer()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._end.set()

    def _read(self) -> None:
        # Bounded, so that one chatty command does not starve the others.
        for _ in range(_CHUNKS_A_TURN):
            if self._fd < 0:
                return
            try:
                data = os.read(self._fd, _CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.close()
            elif self._feed is not None:
                self._feed(data)
            else:
                self._num_discarded_bytes += len(data)
                if self._num_discarded_bytes > _MAX_DISCARDED_BYTES:
                    self.close()


def pipe_holding(secret: str) -> int:
    """The reading end of a pipe that holds ``secret`` as a line, or nothing."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as pipe:
        pipe.write(f"{secret}\n" if secret else "")
    return read_fd
