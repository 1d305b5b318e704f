"""Which environment server a run uses: a named one, or a child process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from palestra.addresses import named_url
from palestra.config import EnvironmentSection
from palestra.errors import EnvironmentUnavailable, HostError
from palestra.run.announcement import Announcement, parse_line
from palestra.run.directory import RunDirectory

START_TIMEOUT_S = 180.0  # each backend's trial start has a limit of its own
STOP_TIMEOUT_S = 20.0


@asynccontextmanager
async def environment_url(
    section: EnvironmentSection,
    run: RunDirectory,
    *,
    on_start: Callable[[Announcement], None],
) -> AsyncIterator[str]:
    """Yield the URL of the environment server of this run.

    The recipe's ``environment.url`` wins, then ``$SWE_AGENT_GYM_URL``; else a
    server is started on a free port and stopped at the end.

    Args:
        section: may name a server.
        run: where the log of an own server goes.
        on_start: told what an own server announced.

    Raises:
        SandboxUnavailable: the own server can start no sandbox.
        EnvironmentUnavailable: it did not come up for another reason.
    """
    named = named_url(section)
    if named is not None:
        yield named
        return
    async with _child_server(run) as announcement:
        on_start(announcement)
        yield announcement.url


@asynccontextmanager
async def _child_server(run: RunDirectory) -> AsyncIterator[Announcement]:
    try:
        log = run.server_log.open("ab")
    except OSError as error:
        raise HostError.from_os(error, doing="cannot write the server's log") from error
    announced, announce = os.pipe()
    command = (sys.executable, "-m", "palestra", "serve", "--recipe", str(run.recipe))
    options = ("--port", "0", "--ready-fd", str(announce), "--exit-with-parent")
    with log, os.fdopen(announced, "rb") as ready:
        try:
            # The child holds the read end of its stdin: when we go, however we go,
            # it sees the end and stops. Its own session keeps a Ctrl-C of the
            # terminal from killing it before its episodes are cleaned up.
            process = await asyncio.create_subprocess_exec(
                *command,
                *options,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(announce,),
                start_new_session=True,
            )
        finally:
            os.close(announce)
        try:
            yield await _announced(ready, run.server_log)
        finally:
            await _stop(process)


async def _announced(ready: BinaryIO, log: Path) -> Announcement:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), ready)
    try:
        line = await asyncio.wait_for(reader.readline(), START_TIMEOUT_S)
    except TimeoutError:
        raise EnvironmentUnavailable(
            f"the environment server did not come up in {START_TIMEOUT_S:.0f} s",
            hint=f"its log: {log}",
        ) from None
    finally:
        transport.close()
    if not line:
        raise EnvironmentUnavailable(f"the environment server did not start: {_last_line(log)}")
    return parse_line(line)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    if process.returncode is None:
        process.kill()
        await process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"
