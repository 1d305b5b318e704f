"""Limits on memory, processes and CPU: cgroup v2, else cgroup v1, else a watchdog.

The limit on what a sandbox writes is the size of the tmpfs that its overlay writes
to (:mod:`~palestra.environment.sandboxes.arguments`), not of concern here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from palestra.environment.sandboxes import processes
from palestra.environment.sandboxes.cgroups import SPARE_PIDS, CgroupCounters, own_cgroups
from palestra.environment.sandboxes.processes import ProcessId
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import SandboxStartError

CGROUP_PREFIX = "palestra-"
_WATCH_INTERVAL_S = 0.25
_REMOVE_ATTEMPTS = 500
_REMOVE_INTERVAL_S = 0.01
_CPU_PERIOD_US = 100_000


class LimitGroup(Protocol):
    """The limits of one sandbox."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The cgroups to remove with the sandbox."""
        ...

    def admit(self, init_pid: int) -> None:
        """Begin to put the sandbox's pid 1, and so all that it starts, under the limits.

        The first command waits until that is done.

        Raises:
            SandboxStartError: the kernel refused.
        """
        ...

    def enforced(self, kill: Callable[[], object]) -> AbstractAsyncContextManager[None]:
        """Enforce the limits during one command; a watchdog needs ``kill`` for that.

        Raises (on entry):
            SandboxStartError: the kernel refused to put the sandbox under them.
        """
        ...

    def is_crowded(self) -> bool:
        """Whether so many processes are left that the shell might not start another."""
        ...

    def newly_hit(self) -> str | None:
        """Which limit was hit since the last call: ``memory``, ``pids``, ``cpu`` or ``None``."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """The most memory that the sandbox ever had at once; ``None`` where nobody counts."""
        ...


class Limiter(Protocol):
    """Makes limit groups by one mechanism of the kernel."""

    @property
    def mechanism(self) -> str:
        """``cgroup v2``, ``cgroup v1`` or ``watchdog``."""
        ...

    def group(self, sandbox_id: str, limits: SandboxLimits) -> LimitGroup:
        """Name a group; nothing is made before :meth:`LimitGroup.admit`."""
        ...


def find_limiter(*, mounts: str | None = None, own_groups: str | None = None) -> Limiter:
    """The best mechanism that this process may use.

    Args:
        mounts: text in the form of ``/proc/self/mountinfo``, which is the default.
        own_groups: text in the form of ``/proc/self/cgroup``, which is the default.
    """
    mounts = _read("/proc/self/mountinfo") if mounts is None else mounts
    own_groups = _read("/proc/self/cgroup") if own_groups is None else own_groups
    own = own_cgroups(mounts, own_groups)
    if (unified := own.get("")) and (parent := _delegated_parent(*unified)):
        return CgroupLimiter(
            mechanism="cgroup v2", parents={"memory": parent, "pids": parent, "cpu": parent}
        )
    legacy = {name: path for name, (path, _) in own.items() if name and _may_make_groups(path)}
    if "memory" in legacy and "pids" in legacy:
        return CgroupLimiter(mechanism="cgroup v1", parents=legacy)
    return WatchdogLimiter()


def mechanism_in_use() -> str:
    """How limits are enforced here: ``cgroup v2``, ``cgroup v1`` or ``watchdog``."""
    return find_limiter().mechanism


# --- cgroups ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimiter:
    """Cgroups below ``parents``, by controller; in v2 these are all the same folder."""

    mechanism: str
    parents: dict[str, Path]
    mover: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))

    def group(self, sandbox_id: str, limits: SandboxLimits) -> LimitGroup:
        """Name the sandbox's group below each parent."""
        wanted = ["memory", "pids"] + (["cpu"] if limits.cpus is not None else [])
        folders = {
            name: self.parents[name] / f"{CGROUP_PREFIX}{sandbox_id}"
            for name in wanted
            if name in self.parents
        }
        is_v2 = self.mechanism == "cgroup v2"
        return _Cgroup(
            folders=folders,
            settings=(_v2_settings if is_v2 else _v1_settings)(limits),
            counters=CgroupCounters(folders, is_v2=is_v2, num_pids=limits.num_pids),
            mover=self.mover,
        )


class _Cgroup:
    def __init__(
        self,
        *,
        folders: dict[str, Path],
        settings: dict[str, list[tuple[str, str]]],
        counters: CgroupCounters,
        mover: ThreadPoolExecutor,
    ) -> None:
        self._folders = folders
        self._settings = settings
        self._mover = mover
        self._moving: Future[None] | None = None
        self._counters = counters

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(self._folders.values()))

    def admit(self, init_pid: int) -> None:
        process = processes.identify(init_pid)
        if process is None:
            raise SandboxStartError("the sandbox ended at once")
        try:
            for folder in self.paths:
                folder.mkdir(exist_ok=True)
            for controller, folder in self._folders.items():
                for file, value in self._settings[controller]:
                    path = folder / file
                    if path.exists():
                        path.write_text(value)
        except OSError as error:
            raise _refused(error) from error
        # The kernel makes the mover wait for a grace period, 10 ms: not on the event loop.
        self._moving = self._mover.submit(self._move, process)

    def _move(self, process: ProcessId) -> None:
        for folder in self.paths:
            if processes.is_alive(process):
                (folder / "cgroup.procs").write_text(str(process.pid))

    @asynccontextmanager
    async def enforced(self, kill: Callable[[], object]) -> AsyncIterator[None]:
        if self._moving is not None:
            try:
                # Shielded: a command that is cancelled must not cancel the move.
                await asyncio.shield(asyncio.wrap_future(self._moving))
            except OSError as error:
                raise _refused(error) from error
            self._moving = None
        yield

    def is_crowded(self) -> bool:
        return self._counters.is_crowded()

    def newly_hit(self) -> str | None:
        return self._counters.newly_hit()

    def peak_memory_bytes(self) -> int | None:
        return self._counters.peak_memory_bytes()


def _v2_settings(limits: SandboxLimits) -> dict[str, list[tuple[str, str]]]:
    return {
        "memory": [("memory.max", str(limits.memory_bytes)), ("memory.swap.max", "0")],
        "pids": [("pids.max", str(limits.num_pids))],
        "cpu": [("cpu.max", f"{_quota_us(limits)} {_CPU_PERIOD_US}")],
    }


def _v1_settings(limits: SandboxLimits) -> dict[str, list[tuple[str, str]]]:
    return {
        "memory": [
            ("memory.limit_in_bytes", str(limits.memory_bytes)),
            ("memory.memsw.limit_in_bytes", str(limits.memory_bytes)),
        ],
        "pids": [("pids.max", str(limits.num_pids))],
        "cpu": [
            ("cpu.cfs_period_us", str(_CPU_PERIOD_US)),
            ("cpu.cfs_quota_us", str(_quota_us(limits))),
        ],
    }


def _quota_us(limits: SandboxLimits) -> int:
    return max(1000, int((limits.cpus or 1.0) * _CPU_PERIOD_US))


def _refused(error: OSError) -> SandboxStartError:
    return SandboxStartError(f"cannot set the sandbox's limits: {error}")


async def remove_cgroup(folder: Path) -> None:
    """Kill what is in a cgroup and remove it; a group that is gone already is fine."""
    for _ in range(_REMOVE_ATTEMPTS):
        if _try_remove(folder):
            return
        await asyncio.sleep(_REMOVE_INTERVAL_S)


def _try_remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        for pid in _read(str(folder / "cgroup.procs")).split():
            if (process := processes.identify(int(pid))) is not None:
                processes.kill(process)
        return False
    return True


def _delegated_parent(own: Path, root: Path) -> Path | None:
    """The v2 group below which we may make groups with a memory and a pids limit."""
    for folder in (own, *own.parents):
        shared = _read(str(folder / "cgroup.subtree_control")).split()
        if {"memory", "pids"} <= set(shared) and _may_make_groups(folder):
            return folder
        if folder == root:
            break
    return _delegate_own(own)


def _delegate_own(own: Path) -> Path | None:
    """Hand controllers down from our own group, after moving ourselves to a leaf of it."""
    offered = set(_read(str(own / "cgroup.controllers")).split())
    alone = _read(str(own / "cgroup.procs")).split() == [str(os.getpid())]
    if not {"memory", "pids"} <= offered or not alone or not _may_make_groups(own):
        return None
    leaf = own / f"{CGROUP_PREFIX}server-{os.getpid()}"
    wanted = " ".join(f"+{name}" for name in ("memory", "pids", "cpu") if name in offered)
    try:
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        (own / "cgroup.subtree_control").write_text(wanted)
    except OSError:
        return None
    return own


def _may_make_groups(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- watchdog -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogLimiter:
    """Looks at a sandbox's processes a few times a second while a command runs.

    Weaker than a cgroup: what happens between two looks goes unseen, and shared
    pages count once for every process.
    """

    mechanism: str = "watchdog"
    interval_s: float = _WATCH_INTERVAL_S

    def group(self, sandbox_id: str, limits: SandboxLimits) -> LimitGroup:
        """A watch over one sandbox."""
        return _Watch(limits, self.interval_s)


class _Watch:
    def __init__(self, limits: SandboxLimits, interval_s: float) -> None:
        self._limits = limits
        self._interval_s = interval_s
        self._init_pid: int | None = None
        self._hit: str | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return ()

    def admit(self, init_pid: int) -> None:
        self._init_pid = init_pid

    @asynccontextmanager
    async def enforced(self, kill: Callable[[], object]) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch(kill))
        try:
            yield
        finally:
            watching.cancel()

    def is_crowded(self) -> bool:
        return self._num_inside() > self._limits.num_pids - SPARE_PIDS

    def _num_inside(self) -> int:
        return sum(1 for _ in processes.descendants(self._init_pid)) if self._init_pid else 0

    def newly_hit(self) -> str | None:
        hit, self._hit = self._hit, None
        return hit

    def peak_memory_bytes(self) -> int | None:
        return None

    async def _watch(self, kill: Callable[[], object]) -> None:
        while self._init_pid is not None:
            await asyncio.sleep(self._interval_s)
            inside = list(processes.descendants(self._init_pid))
            if len(inside) >= self._limits.num_pids:
                self._hit = "pids"
            elif sum(map(processes.rss_bytes, inside)) > self._limits.memory_bytes:
                self._hit = "memory"
            else:
                continue
            kill()
