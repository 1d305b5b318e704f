"""The hijacked connection on which an engine carries a container's stdin and output."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from palestra.errors import SandboxStartError

_HEADER = struct.Struct(">BxxxL")
_CHUNK_BYTES = 1 << 16
_COMPLAINT_TIMEOUT_S = 2.0
_MAX_COMPLAINT_BYTES = 4096
_ACCEPTED = (b"101", b"200")


class EngineStream:
    """Bytes to a container's stdin, and what comes back, both outputs in one.

    Args:
        reader: behind the HTTP headers.
        writer: the same connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Write to the container's stdin.

        Raises:
            OSError: the connection is gone.
        """
        self._writer.write(data)
        await self._writer.drain()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what the container prints until the connection ends, however it does."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                _, num_left = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
                while num_left:
                    data = await self._reader.read(min(num_left, _CHUNK_BYTES))
                    if not data:
                        return
                    num_left -= len(data)
                    yield data

    async def aclose(self) -> None:
        """Close the connection, which is the end of the container's stdin."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def open_stream(socket: Path, path: str, *, timeout_s: float) -> EngineStream:
    """Ask the engine to make a connection a stream.

    Args:
        socket: where the engine listens.
        path: of the request, with its query.
        timeout_s: for its answer.

    Raises:
        SandboxStartError: it does not answer, or refuses.
    """
    request = (
        f"POST {path} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        "Content-Length: 0\r\n\r\n"
    )
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError) as error:
        if writer is not None:
            writer.close()
        raise SandboxStartError(f"attaching to a container: {error!r}") from error
    status = head.split(b" ", 2)[1:2]
    if not status or status[0] not in _ACCEPTED:
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_COMPLAINT_TIMEOUT_S):
                head += await reader.read(_MAX_COMPLAINT_BYTES)
        writer.close()
        complaint = head.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace").strip()
        raise SandboxStartError(f"attaching to a container: {complaint or head!r}")
    return EngineStream(reader, writer)
