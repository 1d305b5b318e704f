"""The dashboard beside a command that works: a process of its own, never in its way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

import typer

from palestra.cli.view import DEFAULT_PORT, READY

STOP_TIMEOUT_S = 3.0

View = Annotated[
    bool,
    typer.Option(
        "--view/--no-view", envvar="PALESTRA_VIEW", help="Show the dashboard in the meantime."
    ),
]
ViewPort = Annotated[
    int, typer.Option(min=0, max=65535, help="Port of the dashboard; 0: any free one.")
]


@contextmanager
def dashboard_beside(
    runs: Path,
    *,
    wanted: bool,
    say: Callable[[str], None],
    port: int = DEFAULT_PORT,
    page: str = "",
    environment: str | None = None,
    token: str | None = None,
) -> Iterator[None]:
    """Show the dashboard while the block runs; trouble with it is one line and nothing else.

    Args:
        runs: folder of the runs.
        wanted: or do nothing.
        say: told the address, or why there is none, from another thread.
        port: to listen on.
        page: what the address ends in.
        environment: address of an environment server to watch.
        token: that environment servers want; it goes where other users cannot see it.
    """
    process = _started(runs, port, environment, token, say) if wanted else None
    if process is None:
        yield
        return
    assert process.stderr is not None
    relay = threading.Thread(
        target=_relay, args=(process.stderr, page, say), name="dashboard", daemon=True
    )
    relay.start()
    try:
        yield
    finally:
        _stop(process)
        relay.join(STOP_TIMEOUT_S)


def _started(
    runs: Path,
    port: int,
    environment: str | None,
    token: str | None,
    say: Callable[[str], None],
) -> subprocess.Popen[bytes] | None:
    command = [sys.executable, "-m", "palestra", "view", str(runs), "--port", str(port)]
    if environment is not None:
        command += ["--environment", environment]
    try:
        # It ends when its stdin does, so also when we are killed. A session of its own
        # keeps a Ctrl-C of the terminal from it while we still work.
        return subprocess.Popen(
            [*command, "--exit-with-parent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | ({"PALESTRA_TOKEN": token} if token else {}),
            start_new_session=True,
        )
    except OSError as error:
        say(f"no dashboard: {error.strerror}")
        return None


def _relay(lines: IO[bytes], page: str, say: Callable[[str], None]) -> None:
    """Pass the first line on; what follows is read, so that nobody waits for it, and dropped."""
    with lines:
        first = lines.readline().decode("utf-8", "replace").strip()
        if first.startswith(READY):
            say(f"{first}{page}")
        elif first:
            say(f"no dashboard: {first.removeprefix('error: ')}")
        for _ in lines:
            pass


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
