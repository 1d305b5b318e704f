"""One bwrap from its start to the removal of everything it made."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from palestra.environment.sandboxes import processes
from palestra.environment.sandboxes.arguments import CHANNEL
from palestra.environment.sandboxes.channel import Channel
from palestra.environment.sandboxes.reaper import Lease, Leases
from palestra.errors import SandboxDied, SandboxStartError

T = TypeVar("T")

_STOP_TIMEOUT_S = 10.0
_GENTLE_TIMEOUT_S = 2.0
_POLL_S = 0.002
_TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT)
_MAX_COMPLAINT_BYTES = 4096


class StartFailure(SandboxStartError):
    """bwrap or the shell in it did not come up; keeps what bwrap said."""

    def __init__(self, message: str, *, exit_code: int | None, stderr: str) -> None:
        super().__init__(message)
        self.returned = exit_code
        self.stderr = stderr


class Launch:
    """The processes and the lease of one sandbox.

    Args:
        leases: where its lease is kept.
        lease: the lease, already on disk.
        has_bash: whether the shell inside is bash.
    """

    def __init__(self, leases: Leases, lease: Lease, *, has_bash: bool) -> None:
        self._leases = leases
        self._lease = lease
        self._has_bash = has_bash
        self._folder = leases.run_folder(lease.sandbox_id)
        self._stderr_fd = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None

    @property
    def channel(self) -> Channel:
        """The way in; only after :meth:`start`."""
        assert self._channel is not None
        return self._channel

    async def start(self, command_for: Callable[[int], Sequence[str]], *, timeout_s: float) -> int:
        """Start bwrap and wait until the shell inside takes commands.

        Args:
            command_for: gives the command line, from the descriptor on which bwrap
                shall tell the pid of the sandbox's pid 1.
            timeout_s: for all of it.

        Returns:
            The host's pid of the sandbox's pid 1.

        Raises:
            StartFailure: it did not come up.
        """
        info_fd = self._spawn(command_for)
        try:
            async with asyncio.timeout(timeout_s):
                await self.channel.wait_ready()
            return self._adopt(os.read(info_fd, 4096))
        except TimeoutError:
            raise self._failure(f"the sandbox did not come up in {timeout_s:g} s") from None
        except SandboxDied:
            await self._exited(_STOP_TIMEOUT_S)
            raise self._failure("the sandbox did not come up") from None
        finally:
            os.close(info_fd)

    async def stop(self) -> None:
        """Kill every process and remove everything; safe in any state, and twice."""
        if self._process is not None:
            # Pid 1 first: then each bwrap reaps its child and ends by itself, and no
            # zombie is left to an init that may not reap (as in many containers).
            for process in self._lease.processes[1:]:
                processes.kill(process)
            if len(self._lease.processes) < 2 or not await self._exited(_GENTLE_TIMEOUT_S):
                self._kill_group()
                await self._exited(_STOP_TIMEOUT_S)
        if self._channel is not None:
            self._channel.close()
        if self._stderr_fd >= 0:
            os.close(self._stderr_fd)
            self._stderr_fd = -1
        await self._leases.close(self._lease)

    def _spawn(self, command_for: Callable[[int], Sequence[str]]) -> int:
        control, status, info = os.pipe(), os.pipe(), os.pipe()
        try:
            self._stderr_fd = os.memfd_create("bwrap-stderr")
            self._process = subprocess.Popen(
                [*heeding(), *command_for(info[1])],
                stdin=control[0],
                stdout=status[1],
                stderr=self._stderr_fd,
                pass_fds=(info[1],),
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
            )
        except OSError as error:
            for fd in (control[1], status[0], info[0]):
                os.close(fd)
            raise StartFailure(
                f"bwrap cannot be started: {error}", exit_code=None, stderr=""
            ) from error
        finally:
            for fd in (control[0], status[1], info[1]):
                os.close(fd)
        self._lease = self._leases.add_process(self._lease, self._process.pid)
        self._channel = Channel(
            control_fd=control[1],
            status_fd=status[0],
            has_bash=self._has_bash,
        )
        return info[0]

    def _adopt(self, info: bytes) -> int:
        """Take the pid of the sandbox's pid 1 from bwrap's word, and make sure it is that."""
        try:
            said = json.loads(info)
            pid, namespace = int(said["child-pid"]), int(said["pid-namespace"])
        except (ValueError, KeyError, TypeError):
            raise self._failure(f"bwrap did not tell the sandbox's pid: {info!r}") from None
        fd = processes.open_pidfd(pid)
        if fd is None:
            raise self._failure("the sandbox ended at once")
        self.channel.watch(pid, fd)
        folder_fd = self._channel_folder(pid)
        if folder_fd is None or processes.pid_namespace(pid) != namespace:
            raise self._failure("the sandbox ended at once")
        self.channel.use_folder(folder_fd)
        self._lease = self._leases.add_process(self._lease, pid)
        return pid

    def _channel_folder(self, init_pid: int) -> int | None:
        """Open the channel's folder where the inner bwrap sees it, which is not inside.

        A wrong pid does no harm: no other process has a folder of this name.
        """
        bwrap_pid = processes.parent_of(init_pid)
        path = f"/proc/{bwrap_pid}/root{self._folder}/{CHANNEL}"
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None

    def _kill_group(self) -> None:
        assert self._process is not None
        # Not reaped yet, so neither the pid nor the group can be anybody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for process in self._lease.processes:
            processes.kill(process)

    def _has_ended(self) -> bool:
        """Whether bwrap has ended; then it is reaped, and its group is dead.

        A bwrap that ends while it starts, say because nobody takes its word on the pid any
        more, leaves a child behind that waits for it for ever.
        """
        assert self._process is not None
        if self._process.returncode is None:
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self._process.pid, options) is None:
                return False
            self._kill_group()
            self._process.poll()
        return True

    async def _exited(self, timeout_s: float) -> bool:
        """Wait until bwrap and the sandbox's pid 1 are gone, and reap ours."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self._has_ended() and not any(map(processes.is_alive, self._lease.processes)):
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def _failure(self, message: str) -> StartFailure:
        text = ""
        if self._stderr_fd >= 0:
            said = os.pread(self._stderr_fd, _MAX_COMPLAINT_BYTES, 0)
            text = said.decode("utf-8", "replace").strip()
        code = None
        if self._process is not None and self._has_ended():
            code = self._process.returncode
        return StartFailure(f"{message}: {text}" if text else message, exit_code=code, stderr=text)


def heeding() -> list[str]:
    """What makes the command heed the signals that a terminal sends.

    A server that a script put into the background ignores them, its children inherit
    that, and a shell cannot take it back. Nothing where ``env`` is not GNU's.
    """
    if sys.platform != "linux":
        return []
    ignored = [s.name for s in _TERMINAL_SIGNALS if signal.getsignal(s) is signal.SIG_IGN]
    return ["env", f"--default-signal={','.join(ignored)}"] if ignored else []


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work`` even when cancelled meanwhile; the cancellation follows it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
