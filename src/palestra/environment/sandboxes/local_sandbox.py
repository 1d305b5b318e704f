"""A live "sandbox" of the local backend: a folder of this machine, and no isolation."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from palestra.environment.sandboxes.launch import heeding
from palestra.environment.sandboxes.marked import can_find_marked, kill_group, kill_marked
from palestra.environment.sandboxes.output import HeadAndTail
from palestra.environment.sandboxes.pipes import OutputPipe, pipe_holding
from palestra.environment.sandboxes.protocol import SECRET_FD, CommandResult, SandboxLimits
from palestra.errors import SandboxDied, SandboxError

_GRACE_S = 0.05
_KILL_TIMEOUT_S = 10.0
_MAX_ARGUMENT_BYTES = 100_000
_MAX_DISCARDING = 16


class LocalSandbox:
    """Runs commands in a folder of the host, as the caller.

    Args:
        sandbox_id: marks its processes.
        root: everything that is its own: the working directory, its home, its ``TMPDIR``.
        env: the whole environment of commands.
        limits: as far as ``ulimit`` can keep them: memory and file size for each process,
            the number of processes for the user.
    """

    def __init__(
        self, *, sandbox_id: str, root: Path, env: Mapping[str, str], limits: SandboxLimits
    ) -> None:
        self._sandbox_id = sandbox_id
        self._root = root
        self._env = dict(env)
        self._limits = _ulimits(limits)
        self._running: set[asyncio.subprocess.Process] = set()
        self._discarding: list[OutputPipe] = []
        self._closed = False

    @property
    def sandbox_id(self) -> str:
        """Short unique id; what clean-up goes by."""
        return self._sandbox_id

    @property
    def workdir(self) -> str:
        """The folder in which commands start; not the path that the task names."""
        return str(self._root / "work")

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit_bytes: int = 1 << 20,
        secret: str = "",
    ) -> CommandResult:
        """Run ``command`` with the host's bash in a session of its own.

        Raises:
            SandboxDied: the sandbox was stopped, or its folder is gone.
            SandboxError: bash cannot be started.
        """
        self._check()
        output = HeadAndTail(output_limit_bytes)
        started_s = time.monotonic()
        pipe = OutputPipe(output.feed)
        process: asyncio.subprocess.Process | None = None
        try:
            process = await self._spawn(command, pipe.write_fd, secret)
            pipe.close_writer()
            timed_out = not await self._ended(process, timeout_s)
            await pipe.drain(grace_s=_GRACE_S)
        finally:
            if process is not None and process.returncode is None:
                await self._kill(process)
            if process is not None:
                self._running.discard(process)
            self._retire(pipe)
        self._check()
        return CommandResult(
            output=output.text(),
            exit_code=-1 if timed_out else _exit_code(process.returncode),
            timed_out=timed_out,
            elided_bytes=output.elided_bytes,
            duration_s=time.monotonic() - started_s,
        )

    async def write_file(self, path: str, data: bytes) -> None:
        """Write ``data`` to the absolute ``path`` of the host, creating parent directories.

        Raises:
            SandboxDied: the sandbox is gone.
            SandboxError: the file cannot be written.
            ValueError: ``path`` is not absolute.
        """
        target = self._checked(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except OSError as error:
            raise SandboxError(f"cannot write {path}: {error.strerror}") from error

    def peak_memory_bytes(self) -> int | None:
        """Nobody counts."""
        return None

    async def read_file(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """The bytes of the absolute ``path`` of the host.

        Raises:
            FileNotFoundError: there is no such regular file that can be read.
            ValueError: it is larger than ``max_bytes``, or ``path`` is not absolute.
            SandboxDied: the sandbox is gone.
        """
        source = self._checked(path)
        try:
            if not source.is_file():
                raise FileNotFoundError(f"no readable regular file: {path}")
            with source.open("rb") as file:
                data = file.read(max_bytes + 1)
        except PermissionError:
            raise FileNotFoundError(f"no readable regular file: {path}") from None
        if len(data) > max_bytes:
            raise ValueError(f"{path} is larger than {max_bytes} bytes")
        return data

    async def stop(self) -> None:
        """End every command and what they left in the background; the sandbox is dead then."""
        self._closed = True
        for process in self._running:
            kill_group(process.pid)
        is_clear = await kill_marked(self._sandbox_id)
        for pipe in self._discarding:
            pipe.close()
        self._discarding.clear()
        if not is_clear:
            raise SandboxError(f"processes of the sandbox {self._sandbox_id} cannot be killed")

    async def _spawn(self, command: str, output_fd: int, secret: str) -> asyncio.subprocess.Process:
        # No argument can hold a NUL.
        text = command.encode("utf-8", "replace").replace(b"\0", b"")
        if len(text) > _MAX_ARGUMENT_BYTES:
            script = self._root / f"script-{secrets.token_hex(4)}"
            script.write_bytes(text)
            argument: str | bytes = str(script)
            end = 'exec bash "$1"'
        else:
            argument = text
            end = 'exec bash -c "$1" bash'
        secret_fd = pipe_holding(secret)
        take = f"exec {SECRET_FD}<&{secret_fd} {secret_fd}<&-; " if secret else ""
        try:
            process = await asyncio.create_subprocess_exec(
                *heeding(),
                "bash",
                "-c",
                f"{take}{self._limits}; {end}",
                "bash",
                argument,
                cwd=self._start_folder(),
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output_fd,
                stderr=output_fd,
                start_new_session=True,
                pass_fds=(secret_fd,),
            )
        except OSError as error:
            self._check()
            raise SandboxError(f"bash cannot be started: {error}") from error
        finally:
            os.close(secret_fd)
        self._running.add(process)
        return process

    async def _ended(self, process: asyncio.subprocess.Process, timeout_s: float) -> bool:
        """Whether the command ended in time; else it and all that it started are killed."""
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            await self._kill(process)
            return False
        if not can_find_marked():
            # What is left in the background could not be found later.
            kill_group(process.pid)
        return True

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        kill_group(process.pid)
        await kill_marked(self._sandbox_id)
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            raise SandboxDied("a command could not be killed") from None

    def _retire(self, pipe: OutputPipe) -> None:
        pipe.close_writer()
        self._discarding = [old for old in self._discarding if not old.ended]
        if pipe.ended or self._closed:
            pipe.close()
            return
        while len(self._discarding) >= _MAX_DISCARDING:
            self._discarding.pop(0).close()
        pipe.discard()
        self._discarding.append(pipe)

    def _start_folder(self) -> Path:
        work = self._root / "work"
        return work if work.is_dir() else self._root  # a command may have removed it

    def _check(self) -> None:
        if self._closed or not self._root.is_dir():
            raise SandboxDied(f"the sandbox {self._sandbox_id} is gone")

    def _checked(self, path: str) -> Path:
        if not path.startswith("/") or "\0" in path or path.endswith("/"):
            raise ValueError(f"not the absolute path of a file: {path!r}")
        self._check()
        return Path(path)


def _exit_code(returncode: int | None) -> int:
    """As a shell says it: 128 and the signal for a command that a signal ended."""
    code = returncode or 0
    return code if code >= 0 else 128 - code


def _ulimits(limits: SandboxLimits) -> str:
    """Bash that sets what the system can limit; a limit that it refuses is left as it is."""
    wanted = {
        "-v": limits.memory_bytes >> 10,
        "-f": limits.disk_bytes >> 10,
        "-c": 0,
    }
    running = _num_threads_of_machine()
    if running is not None and os.geteuid() != 0:
        # Counted for the user, who has other things running.
        wanted["-u"] = running + limits.num_pids
    return "; ".join(f"ulimit {name} {value} 2>/dev/null" for name, value in wanted.items())


def _num_threads_of_machine() -> int | None:
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return None
