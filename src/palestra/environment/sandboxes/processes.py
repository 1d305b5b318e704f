"""Processes by pid *and* start time, and the killing of everything in a pid namespace.

A pid alone names nothing: it may have been given to another process since.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STAT_STATE = 0
_STAT_PARENT = 1
_STAT_GROUP = 2
_STAT_START = 19
_MAX_ROUNDS = 1000
_KERNEL_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process for good: its pid and when it started, in clock ticks since boot."""

    pid: int
    start_ticks: int


def identify(pid: int) -> ProcessId | None:
    """The identity of a living process; ``None`` for a zombie or when there is none."""
    fields = _stat_fields(pid)
    if fields is None or fields[_STAT_STATE] in ("Z", "X"):
        return None
    return ProcessId(pid=pid, start_ticks=int(fields[_STAT_START]))


def group_of(pid: int) -> int | None:
    """The process group of a living process; ``None`` for a zombie or when there is none."""
    fields = _stat_fields(pid)
    if fields is None or fields[_STAT_STATE] in ("Z", "X"):
        return None
    return int(fields[_STAT_GROUP])


def parent_of(pid: int) -> int | None:
    """The pid of the parent of a process; ``None`` when there is no such process."""
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[_STAT_PARENT])


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs (zombies do not)."""
    return identify(process.pid) == process


def kill(process: ProcessId) -> bool:
    """Send SIGKILL to exactly this process; tell whether it was there."""
    fd = open_pidfd(process.pid)
    if fd is None:
        return False
    try:
        # Checked after the pidfd was opened: it cannot be recycled any more.
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def open_pidfd(pid: int) -> int | None:
    """A pidfd of ``pid``; ``None`` when there is no such process."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def pid_namespace(pid: int) -> int | None:
    """The inode number that names the pid namespace of ``pid``."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116 - hot, and no path of ours
    except OSError:
        return None


def descendants(pid: int) -> Iterator[int]:
    """Yield the living descendants of ``pid``, parents before their children."""
    todo = list(_children(pid))
    while todo:
        child = todo.pop()
        yield child
        todo.extend(_children(child))


def kill_all_but(init_pid: int) -> bool:
    """Kill every process in the pid namespace whose pid 1 is ``init_pid``, but that one.

    Orphans of a pid namespace become children of its pid 1, so the descendants
    are all there is. They are stopped first, in rounds, because a stopped
    process cannot fork away from the kill.

    Returns:
        Whether a round came that found nothing new; if not, processes may be left.
    """
    namespace = pid_namespace(init_pid)
    if namespace is None:
        return True
    stopped: set[int] = set()
    for _ in range(_MAX_ROUNDS):
        fresh = [pid for pid in descendants(init_pid) if pid not in stopped]
        if not fresh:
            break
        for pid in fresh:
            _signal_in(namespace, pid, signal.SIGSTOP)
        stopped.update(fresh)
    else:
        return False
    for pid in stopped:
        _signal_in(namespace, pid, signal.SIGKILL)
    return True


def rss_bytes(pid: int) -> int:
    """Resident memory of ``pid`` in bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:  # noqa: PTH123 - hot
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Yield (pid, arguments) of every process that we may see."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            raw = Path(entry.path, "cmdline").read_bytes()
        except OSError:
            continue
        yield int(entry.name), raw.decode("utf-8", "surrogateescape").split("\0")


def read_kernel_file(path: str) -> str | None:
    """The text of a small file of the kernel's; ``None`` where it cannot be read.

    Three system calls: some are read several times a command, and a file object makes
    seven, besides the object.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _KERNEL_FILE_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def _signal_in(namespace: int, pid: int, number: signal.Signals) -> None:
    fd = open_pidfd(pid)
    if fd is None:
        return
    try:
        # Asked after the pidfd was opened: a recycled pid shows another namespace.
        if pid_namespace(pid) == namespace:
            signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(fd)


def _children(pid: int) -> list[int]:
    """The children of every thread of ``pid``."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - hot
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:  # noqa: PTH123
                found.extend(map(int, file.read().split()))
    except OSError:
        pass
    return found


def _stat_fields(pid: int) -> list[str] | None:
    stat = read_kernel_file(f"/proc/{pid}/stat")
    if stat is None:
        return None
    # The command name may hold anything, so what we want starts behind its last bracket.
    return stat.rpartition(")")[2].split()
