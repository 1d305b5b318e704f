"""Who owns what a sandbox leaves: a word for a process that outlives it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from palestra.environment.sandboxes import processes
from palestra.environment.sandboxes.processes import ProcessId
from palestra.environment.sandboxes.reaper import boot_id


def this_owner() -> str:
    """A word that names this process for good: place, pid and start time."""
    pid = os.getpid()
    process = processes.identify(pid)
    return f"{_place()}:{pid}:{process.start_ticks if process else 0}"


def is_gone(owner: str) -> bool:
    """Whether the process behind a word of :func:`this_owner` has ended.

    One of another machine, container or boot may live where we cannot look: it counts as
    living. Where there is no ``/proc``, a pid that was given away again does too.
    """
    place, _, process = owner.partition(":")
    pid, _, start_ticks = process.partition(":")
    if place != _place() or not pid.isdigit() or not start_ticks.isdigit():
        return False
    if int(start_ticks):
        return not processes.is_alive(ProcessId(pid=int(pid), start_ticks=int(start_ticks)))
    with suppress(PermissionError):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
    return False


def _place() -> str:
    """Pids mean the same wherever this is the same."""
    namespace = processes.pid_namespace(os.getpid())
    return f"{boot_id() or socket.gethostname()}.{namespace or 0}"
