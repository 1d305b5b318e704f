"""The processes of a sandbox that no namespace holds together: found by a mark they inherit."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from palestra.environment.sandboxes import processes

MARK = "PALESTRA_SANDBOX"
"""The variable in the environment of every command; its value is the sandbox's id."""

_PROC = Path("/proc")
_POLL_S = 0.01
_NUM_ROUNDS = 500


def can_find_marked() -> bool:
    """Whether this system shows the environment of processes (Linux does, macOS does not)."""
    return (_PROC / "self" / "environ").exists()


async def kill_marked(sandbox_id: str) -> bool:
    """Kill every process of a sandbox, in rounds, because some may fork meanwhile.

    A process that has emptied its environment and left its parents is not found.

    Returns:
        Whether none was left in the end.
    """
    for _ in range(_NUM_ROUNDS):
        found = list(_family(sandbox_id))
        if not found:
            return True
        for process in found:
            processes.kill(process)
        await asyncio.sleep(_POLL_S)
    return False


def kill_group(leader_pid: int) -> None:
    """Kill the process group that ``leader_pid`` leads or led; none is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def _family(sandbox_id: str) -> Iterator[processes.ProcessId]:
    """The marked processes and their descendants."""
    if not can_find_marked():
        return
    mark = f"{MARK}={sandbox_id}".encode()
    seen: set[int] = set()
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
        except OSError:
            continue
        if mark in environment.split(b"\0"):
            pid = int(entry.name)
            seen.update((pid, *processes.descendants(pid)))
    for pid in seen:
        process = processes.identify(pid)
        if process is not None:
            yield process
