"""Waiting for the process that started this one to be gone."""

from __future__ import annotations

import asyncio
import sys


async def end_of_stdin() -> None:
    """Return when the process that started us is gone: its end of our stdin closes."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
