"""Locks between processes, on files; the kernel drops them when their holder dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from palestra.errors import HostError

_POLL_S = 0.05


@asynccontextmanager
async def locked(path: Path, *, timeout_s: float, shared: bool = False) -> AsyncIterator[int]:
    """Hold the lock on ``path``, which is made where it is missing; yields its descriptor.

    Two holders exclude each other within one process as well. A child that inherits the
    descriptor holds the lock on.

    Raises:
        HostError: somebody else held it for ``timeout_s``.
        OSError: the file cannot be made.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline_s = time.monotonic() + timeout_s
        while not _take(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() > deadline_s:
                raise HostError(f"another process has held {path} for {timeout_s:g} s")
            await asyncio.sleep(_POLL_S)
        yield fd
    finally:
        os.close(fd)


def _take(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
