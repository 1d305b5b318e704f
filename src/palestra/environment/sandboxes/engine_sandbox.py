"""A live sandbox in a container of Docker or Podman."""

from __future__ import annotations

import base64
import posixpath
import secrets
import shlex

from palestra.environment.sandboxes.engine_channel import Ended, EngineChannel
from palestra.environment.sandboxes.engine_limits import EngineLimits
from palestra.environment.sandboxes.file_reading import check_path, read_answer, read_command
from palestra.environment.sandboxes.protocol import CommandResult
from palestra.errors import SandboxError

_FILE_TIMEOUT_S = 120.0
# MAX_ARG_STRLEN is 128 KiB; longer commands run as a script file.
_MAX_ARGUMENT_BYTES = 100_000
_PIECE_BYTES = 66_000
"""Of a file that is written; about 88 kB as base64."""


class EngineSandbox:
    """Commands and files through the channel.

    Args:
        sandbox_id: short and unique.
        workdir: absolute directory in which commands start.
        channel: the way in.
        limits: of its container.
    """

    def __init__(
        self, *, sandbox_id: str, workdir: str, channel: EngineChannel, limits: EngineLimits
    ) -> None:
        self._sandbox_id = sandbox_id
        self._workdir = workdir
        self._channel = channel
        self._limits = limits

    @property
    def sandbox_id(self) -> str:
        """Short unique id; what clean-up goes by."""
        return self._sandbox_id

    @property
    def workdir(self) -> str:
        """Absolute directory in which commands start."""
        return self._workdir

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit_bytes: int = 1 << 20,
        secret: str = "",
    ) -> CommandResult:
        """Run ``command`` with bash (sh where there is none) in a fresh process.

        Raises:
            SandboxDied: the sandbox is gone.
        """
        text = command.encode("utf-8", "replace").replace(b"\0", b"")
        if len(text) > _MAX_ARGUMENT_BYTES:
            script = f"/tmp/palestra-{self._sandbox_id}-{secrets.token_hex(4)}.sh"
            await self.write_file(script, text)
            command = f"exec 9<{script}; rm -f {script}; . /dev/fd/9"
        await self._limits.make_room()
        async with self._limits.enforced():
            done = await self._channel.run(
                command,
                timeout_s=timeout_s,
                output_limit_bytes=output_limit_bytes,
                key=secret,
            )
        said = done.output.text()
        limit = await self._limits.newly_hit(
            exit_code=done.exit_code, timed_out=done.timed_out, output=said
        )
        return CommandResult(
            output=said,
            exit_code=done.exit_code,
            timed_out=done.timed_out,
            elided_bytes=done.output.elided_bytes,
            limit=limit,
            duration_s=done.duration_s,
        )

    async def write_file(self, path: str, data: bytes) -> None:
        """Write ``data`` to the absolute ``path``, creating parent directories.

        The writing happens inside, so a symlink there leads nowhere else.

        Raises:
            SandboxDied: the sandbox is gone.
            SandboxError: the file cannot be written.
            ValueError: ``path`` is not absolute.
        """
        check_path(path)
        target, folder = shlex.quote(path), shlex.quote(posixpath.dirname(path))
        empty = f": >{target}"
        await self._do(
            f"mkdir -p -- {folder} && {{ {empty} || {{ rm -f -- {target} && {empty}; }}; }}", path
        )
        for start in range(0, len(data), _PIECE_BYTES):
            piece = base64.b64encode(data[start : start + _PIECE_BYTES]).decode()
            await self._do(f"echo {piece} | base64 -d >>{target}", path)

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
        """As the container's cgroup says; ``None`` where it cannot be seen."""
        return self._limits.peak_memory_bytes()

    async def _do(self, command: str, path: str) -> None:
        done = await self._file_command(command, max_bytes=4096)
        if done.exit_code != 0:
            raise SandboxError(f"cannot write {path} in the sandbox: {done.output.text().strip()}")

    async def _file_command(self, command: str, *, max_bytes: int) -> Ended:
        done = await self._channel.run(
            command, timeout_s=_FILE_TIMEOUT_S, output_limit_bytes=max_bytes
        )
        if done.timed_out:
            raise SandboxError(f"a file took more than {_FILE_TIMEOUT_S:g} s")
        return done
