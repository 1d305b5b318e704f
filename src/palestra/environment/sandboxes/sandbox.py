"""A live sandbox of the bubblewrap backend."""

from __future__ import annotations

import os
import posixpath
import secrets
import shlex

from palestra.environment.sandboxes.channel import Channel, Finished
from palestra.environment.sandboxes.file_reading import check_path, read_answer, read_command
from palestra.environment.sandboxes.limits import LimitGroup
from palestra.environment.sandboxes.protocol import CommandResult
from palestra.environment.sandboxes.shell import MOUNT_POINT
from palestra.errors import SandboxError

FILE_TIMEOUT_S = 120.0
"""Seconds that reading or writing one file may take."""
_DISK_IS_FULL_BYTES = 1 << 16


class BubblewrapSandbox:
    """Commands and files through the channel, limits by their group."""

    def __init__(
        self,
        *,
        sandbox_id: str,
        workdir: str,
        channel: Channel,
        limits: LimitGroup,
        init_pid: int,
    ) -> None:
        self._sandbox_id = sandbox_id
        self._workdir = workdir
        self._channel = channel
        self._limits = limits
        self._init_pid = init_pid

    @property
    def sandbox_id(self) -> str:
        """Short unique id; what clean-up goes by."""
        return self._sandbox_id

    @property
    def workdir(self) -> str:
        """Absolute directory in which commands start."""
        return self._workdir

    @property
    def init_pid(self) -> int:
        """The host's pid of the sandbox's pid 1."""
        return self._init_pid

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit_bytes: int = 1 << 20,
        secret: str = "",
    ) -> CommandResult:
        """Run ``command`` with bash (sh where there is none) in a fresh process.

        A command that hits the limit on processes or memory loses what it left in
        the background, so that the next one finds room.

        Raises:
            SandboxDied: the sandbox is gone.
        """
        async with self._limits.enforced(self._channel.kill_commands):
            # The shell dies if it cannot fork, so what fills the sandbox goes first.
            if self._limits.is_crowded():
                await self._channel.clear()
            done = await self._channel.run(
                command,
                timeout_s=timeout_s,
                output_limit_bytes=output_limit_bytes,
                secret=secret,
            )
        limit = self._limits.newly_hit()
        if limit == "cpu" and not done.timed_out:
            limit = None  # it was slowed down, and ended all the same
        if limit is not None or done.timed_out:
            await self._channel.clear()
            self._limits.newly_hit()  # what they hit while dying is not the next command's
        if limit is None and done.exit_code != 0 and self._disk_is_full():
            limit = "disk"
        return CommandResult(
            output=done.output.text(),
            exit_code=done.exit_code,
            timed_out=done.timed_out,
            elided_bytes=done.output.elided_bytes,
            limit=limit,
            duration_s=done.duration_s,
        )

    async def write_file(self, path: str, data: bytes) -> None:
        """Write ``data`` to the absolute ``path``, creating parent directories.

        The copying happens inside, so a symlink there leads nowhere else.

        Raises:
            SandboxDied: the sandbox is gone.
            SandboxError: the file cannot be written.
            ValueError: ``path`` is not absolute.
        """
        check_path(path)
        name = f"{secrets.token_hex(8)}.data"
        target, folder = shlex.quote(path), shlex.quote(posixpath.dirname(path))
        copy = f"cat {MOUNT_POINT}/{name} >{target}"
        try:
            with self._channel.laid_file(name, data):
                done = await self._file_command(
                    f"mkdir -p -- {folder} && {{ {copy} || {{ rm -f -- {target} && {copy}; }}; }}",
                    max_bytes=4096,
                )
        except OSError as error:
            raise SandboxError(f"cannot hand {path} to the sandbox: {error}") from error
        if done.exit_code != 0:
            raise SandboxError(f"cannot write {path} in the sandbox: {done.output.text().strip()}")

    async def read_file(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """The bytes of the absolute ``path``.

        Raises:
            FileNotFoundError: there is no such regular file that can be read.
            ValueError: it is larger than ``max_bytes``, or ``path`` is not absolute.
            SandboxDied: the sandbox is gone.
        """
        command = read_command(path, max_bytes=max_bytes)
        done = await self._file_command(command, max_bytes=max_bytes + 2)
        return read_answer(path, done.exit_code, done.output.bytes(), max_bytes=max_bytes)

    def peak_memory_bytes(self) -> int | None:
        """As its cgroup says; ``None`` without one."""
        return self._limits.peak_memory_bytes()

    async def _file_command(self, command: str, *, max_bytes: int) -> Finished:
        done = await self._channel.run(
            command, timeout_s=FILE_TIMEOUT_S, output_limit_bytes=max_bytes
        )
        if done.timed_out:
            raise SandboxError(f"a file took more than {FILE_TIMEOUT_S:g} s: {command}")
        return done

    def _disk_is_full(self) -> bool:
        try:
            disk = os.statvfs(f"/proc/{self._init_pid}/root/")
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < _DISK_IS_FULL_BYTES or disk.f_favail == 0
