"""Which limits a container hit: from its cgroup, and from what it has written.

Engines limit memory, processes and CPU by cgroups, and tell nobody when a limit is hit; the
cgroup itself does, where the engine runs on this machine. They have no limit on the disk that
works everywhere: a single file is bounded by a ulimit, and everything together is measured
while a command runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from palestra.environment.sandboxes.cgroups import counters_of
from palestra.environment.sandboxes.engine_api import EngineApi
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import SandboxError

_DISK_INTERVAL_S = 2.0
_DISK_REST = 20
"""An engine that is slow to measure is left alone for this many times as long: many containers
would otherwise keep it busy with nothing else."""
_FILE_TOO_LARGE = 128 + 25
"""Exit code of a command that SIGXFSZ ended."""
_COMPLAINTS = ("File too large", "File size limit exceeded")
_CLEAR_POLL_S = 0.02
_NUM_CLEAR_POLLS = 250


class EngineLimits:
    """The limits of one container.

    Args:
        api: of its engine.
        container_id: of the container, which runs.
        first_pid: of its first process; 0 if unknown.
        limits: what it was started with.
    """

    def __init__(
        self, api: EngineApi, container_id: str, *, first_pid: int, limits: SandboxLimits
    ) -> None:
        self._api = api
        self._container_id = container_id
        self._limits = limits
        self._counters = counters_of(first_pid, num_pids=limits.num_pids) if first_pid else None
        self._disk_is_full = False

    async def make_room(self) -> None:
        """End everything but the shell if so much runs that it might not start a command."""
        if self._counters is None or not self._counters.is_crowded():
            return
        await self.clear()
        for _ in range(_NUM_CLEAR_POLLS):
            if not self._counters.is_crowded():
                break
            await asyncio.sleep(_CLEAR_POLL_S)
        self._counters.newly_hit()  # what they hit while dying is not the next command's

    def peak_memory_bytes(self) -> int | None:
        """As the container's cgroup says; ``None`` where it cannot be seen."""
        return self._counters.peak_memory_bytes() if self._counters is not None else None

    async def clear(self) -> None:
        """End everything but the shell."""
        await self._api.signal(self._container_id, "SIGUSR2")

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Watch the disk during one command."""
        watching = asyncio.create_task(self._watch_disk())
        try:
            yield
        finally:
            watching.cancel()

    async def newly_hit(self, *, exit_code: int, timed_out: bool, output: str) -> str | None:
        """Which limit the command hit that ended like this: memory, pids, cpu, disk or none."""
        if self._disk_is_full or await self._hit_file_limit(exit_code, output):
            self._disk_is_full = False
            return "disk"
        hit = self._counters.newly_hit() if self._counters is not None else None
        if hit in ("memory", "pids"):
            # What it left in the background would stand in the way of the next.
            await self.clear()
            return hit
        return hit if timed_out else None

    async def _hit_file_limit(self, exit_code: int, output: str) -> bool:
        if exit_code in (0, -1):
            return False
        if exit_code != _FILE_TOO_LARGE and not any(text in output for text in _COMPLAINTS):
            return False
        return await self._api.written_bytes(self._container_id) >= self._limits.disk_bytes

    async def _watch_disk(self) -> None:
        took_s = 0.0
        while True:
            await asyncio.sleep(max(_DISK_INTERVAL_S, _DISK_REST * took_s))
            began_s = time.monotonic()
            try:
                written = await self._api.written_bytes(self._container_id)
            except SandboxError:
                return  # the command learns from its own channel what happened
            took_s = time.monotonic() - began_s
            if written > self._limits.disk_bytes:
                self._disk_is_full = True
                await self.clear()
