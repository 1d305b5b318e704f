"""Which environment server a run uses: a named one, or a child process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson

from palestra.config import EnvironmentSection
from palestra.errors import EnvironmentUnavailable, HostError
from palestra.run.directory import RunDirectory

URL_VARIABLE = "SWE_AGENT_GYM_URL"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


@asynccontextmanager
async def environment_url(section: EnvironmentSection, run: RunDirectory) -> AsyncIterator[str]:
    """Yield the URL of the environment server of this run.

    The recipe's ``environment.url`` wins, then ``$SWE_AGENT_GYM_URL``; else a
    server is started on a free port and stopped at the end.
    """
    named = section.url or os.environ.get(URL_VARIABLE)
    if named:
        yield named.rstrip("/")
        return
    async with _child_server(run) as url:
        yield url


@asynccontextmanager
async def _child_server(run: RunDirectory) -> AsyncIterator[str]:
    ready = run.root / f".server-{os.getpid()}.json"
    command = (sys.executable, "-m", "palestra", "serve", "--recipe", str(run.recipe))
    options = ("--port", "0", "--ready-file", str(ready), "--exit-with-parent")
    try:
        log = run.server_log.open("ab")
    except OSError as error:
        raise HostError.from_os(error, doing="cannot write the server's log") from error
    with log:
        # The child holds the read end of this pipe: when we go, however we go,
        # it sees the end of its stdin and stops. Its own session keeps a Ctrl-C
        # of the terminal from killing it before its episodes are cleaned up.
        process = await asyncio.create_subprocess_exec(
            *command,
            *options,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield await _wait_until_ready(process, ready, run.server_log)
    finally:
        ready.unlink(missing_ok=True)
        await _stop(process)


async def _wait_until_ready(process: asyncio.subprocess.Process, ready: Path, log: Path) -> str:
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while process.returncode is None:
        if ready.exists():
            return str(orjson.loads(ready.read_bytes())["url"])
        if asyncio.get_running_loop().time() > deadline:
            raise EnvironmentUnavailable(
                f"the environment server did not come up in {START_TIMEOUT_S:.0f} s",
                hint=f"its log: {log}",
            )
        await asyncio.sleep(0.02)
    raise EnvironmentUnavailable(f"the environment server stopped at start: {_last_line(log)}")


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
