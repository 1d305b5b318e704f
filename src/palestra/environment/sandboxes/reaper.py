"""Leases: what each sandbox owns, on disk, so that it can be removed for a dead owner.

A lease is written before anything is made and removed after everything is gone.
It names its owner by pid and start time; once that process is dead, whatever the
lease lists is removed by the next :func:`reap`. Mounts and what lies on them need no
entry: they live in the sandbox's own mount namespace and end with its processes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from palestra.environment.sandboxes import processes
from palestra.environment.sandboxes.limits import CGROUP_PREFIX, remove_cgroup
from palestra.environment.sandboxes.processes import ProcessId

_POLL_S = 0.02
_MAX_POLLS = 500
_ABANDONED_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What one sandbox owns."""

    sandbox_id: str
    owner: ProcessId
    boot_id: str
    processes: tuple[ProcessId, ...] = ()
    """The outer bwrap, which leads the sandbox's process group, and its pid 1."""
    cgroups: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    """Keys of the cached layers that its overlay stands on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What :func:`reap` removed."""

    sandbox_ids: tuple[str, ...]
    num_killed: int


class Leases:
    """The leases below a state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._leases = state_dir / "leases"
        self._runs = state_dir / "run"

    @property
    def mount_point(self) -> Path:
        """An empty folder, on which each sandbox mounts its own tmpfs where only it sees it."""
        return self._runs

    def run_folder(self, sandbox_id: str) -> Path:
        """The sandbox's folder on its tmpfs; its processes name it in their arguments."""
        return self._runs / sandbox_id

    def open(self, *, layers: tuple[str, ...], cgroups: tuple[str, ...], sandbox_id: str) -> Lease:
        """Write the lease of a new sandbox and make the mount point.

        Raises:
            OSError: they cannot be written.
        """
        owner = processes.identify(os.getpid())
        assert owner is not None
        lease = Lease(
            sandbox_id=sandbox_id, owner=owner, boot_id=boot_id(), layers=layers, cgroups=cgroups
        )
        self._leases.mkdir(parents=True, exist_ok=True)
        self._runs.mkdir(parents=True, exist_ok=True)
        self._write(lease)
        return lease

    def add_process(self, lease: Lease, pid: int) -> Lease:
        """Record a process that the sandbox consists of."""
        process = processes.identify(pid)
        if process is None:
            return lease
        lease = replace(lease, processes=(*lease.processes, process))
        # In one write over the old text, which is shorter: no file comes and goes, and a
        # reader that sees it half done takes the lease for one that is being written.
        with self._path(lease.sandbox_id).open("r+b", buffering=0) as file:
            file.write(orjson.dumps(asdict(lease)))
        return lease

    def all(self) -> Iterator[Lease]:
        """Yield every readable lease."""
        if not self._leases.is_dir():
            return
        for path in self._leases.glob("*.json"):
            try:
                yield _parse(orjson.loads(path.read_bytes()))
            except OSError:
                continue  # its owner was quicker
            except (ValueError, KeyError, TypeError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink(missing_ok=True)

    def clear_torn(self) -> None:
        """Remove lease files that an owner died over."""
        for path in self._leases.glob(".*"):
            _, _, pid, start_ticks = path.name.split(".")
            if not processes.is_alive(ProcessId(pid=int(pid), start_ticks=int(start_ticks))):
                path.unlink(missing_ok=True)

    async def close(self, lease: Lease) -> None:
        """Remove what a lease lists, once its processes are gone, and then the lease."""
        for cgroup in lease.cgroups:
            if Path(cgroup).name.startswith(CGROUP_PREFIX):
                await remove_cgroup(Path(cgroup))
        self._path(lease.sandbox_id).unlink(missing_ok=True)

    def _path(self, sandbox_id: str) -> Path:
        return self._leases / f"{sandbox_id}.json"

    def _write(self, lease: Lease) -> None:
        owner = lease.owner
        temporary = self._leases / f".{lease.sandbox_id}.{owner.pid}.{owner.start_ticks}"
        temporary.write_bytes(orjson.dumps(asdict(lease)))
        temporary.rename(self._path(lease.sandbox_id))


async def reap(state_dir: Path) -> Reaped:
    """Remove everything that sandboxes of dead owners left behind.

    Any number of processes may do this at once.
    """
    leases = Leases(state_dir)
    leases.clear_torn()
    dead = [lease for lease in leases.all() if not _is_owned(lease)]
    if not dead:
        return Reaped(sandbox_ids=(), num_killed=0)
    killed: set[ProcessId] = set()
    num_quiet = 0
    for _ in range(_MAX_POLLS):
        remaining, is_unclear = _remaining(leases, dead)
        killed |= {process for process in remaining if processes.kill(process)}
        # Twice nothing: a process in the middle of execve() shows no arguments.
        num_quiet = 0 if remaining or is_unclear else num_quiet + 1
        if num_quiet == 2:
            break
        await asyncio.sleep(_POLL_S)
    for lease in dead:
        await leases.close(lease)
    return Reaped(sandbox_ids=tuple(lease.sandbox_id for lease in dead), num_killed=len(killed))


def boot_id() -> str:
    """What tells this boot of the machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_owned(lease: Lease) -> bool:
    return lease.boot_id == boot_id() and processes.is_alive(lease.owner)


def _remaining(leases: Leases, dead: list[Lease]) -> tuple[set[ProcessId], bool]:
    """The living processes of dead leases: the recorded ones, and those that show whose they are.

    An owner can die between starting a process and recording it, and a bwrap that is
    killed while it starts can leave a child without a parent. But every bwrap names
    the run folder in its arguments, and pid 1 the sandbox.

    Returns:
        Them, and whether there is a process that may turn out to be one: in a
        sandbox's process group, without arguments yet.
    """
    same_boot = [lease for lease in dead if lease.boot_id == boot_id()]
    recorded = {process for lease in same_boot for process in lease.processes}
    found = set(filter(processes.is_alive, recorded))
    groups = {process.pid for process in recorded}
    marks = {f"palestra-{lease.sandbox_id}" for lease in same_boot}
    marks |= {str(leases.run_folder(lease.sandbox_id) / "upper") for lease in same_boot}
    is_unclear = False
    for pid, arguments in processes.command_lines():
        if not any(arguments):
            is_unclear = is_unclear or processes.group_of(pid) in groups
        elif not marks.isdisjoint(arguments) and (process := processes.identify(pid)):
            found.add(process)
    return found, is_unclear


def _parse(data: dict[str, Any]) -> Lease:
    return Lease(
        sandbox_id=_checked_id(data["sandbox_id"]),
        owner=ProcessId(**data["owner"]),
        boot_id=str(data["boot_id"]),
        processes=tuple(ProcessId(**item) for item in data["processes"]),
        cgroups=tuple(map(str, data["cgroups"])),
        layers=tuple(map(str, data["layers"])),
    )


def _checked_id(sandbox_id: str) -> str:
    # It becomes a path that is removed.
    if not isinstance(sandbox_id, str) or not sandbox_id.isalnum():
        raise ValueError(f"not a sandbox id: {sandbox_id!r}")
    return sandbox_id
