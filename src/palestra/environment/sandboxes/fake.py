"""A public fake: a "sandbox" that is a temporary folder of this machine. For tests only.

It keeps the protocol's semantics (time-outs kill the process tree, output is capped,
a closed sandbox is dead) and isolates nothing: never give it a model's commands.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from palestra.environment.sandboxes.output import HeadAndTail
from palestra.environment.sandboxes.pipes import pipe_holding
from palestra.environment.sandboxes.protocol import (
    SECRET_FD,
    CommandResult,
    OnProgress,
    Sandbox,
    SandboxSpec,
)
from palestra.environment.sandboxes.repository import write_repository
from palestra.errors import SandboxDied


class FakeSandbox:
    """Commands in a folder, on the host.

    Args:
        folder: where commands start.
        spec: its environment is added to this process's.
    """

    def __init__(self, folder: Path, spec: SandboxSpec) -> None:
        self._id = secrets.token_hex(4)
        self._folder = folder
        self._env = {**os.environ, **spec.env}
        self._running: set[asyncio.subprocess.Process] = set()
        self._dead = False

    @property
    def sandbox_id(self) -> str:
        """Short unique id."""
        return self._id

    @property
    def workdir(self) -> str:
        """The folder, not the task's ``workdir``."""
        return str(self._folder)

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit_bytes: int = 1 << 20,
        secret: str = "",
    ) -> CommandResult:
        """Run ``command`` with the host's bash."""
        self._check_alive()
        started_s = time.monotonic()
        timed_out = False
        # A file, not a pipe: a process left in the background may hold a pipe open.
        with tempfile.TemporaryFile() as log:
            process = await self._spawn(command, log, secret)
            self._running.add(process)
            try:
                async with asyncio.timeout(timeout_s):
                    await process.wait()
            except TimeoutError:
                timed_out = True
            finally:
                _kill_group(process)
                await process.wait()
                self._running.discard(process)
            log.seek(0)
            output = HeadAndTail(output_limit_bytes)
            output.feed(log.read())
        self._check_alive()
        return CommandResult(
            output=output.text(),
            exit_code=-1 if timed_out else process.returncode or 0,
            timed_out=timed_out,
            elided_bytes=output.elided_bytes,
            duration_s=time.monotonic() - started_s,
        )

    async def write_file(self, path: str, data: bytes) -> None:
        """Write to ``path`` of the host."""
        self._check_alive()
        _write(Path(path), data)

    def peak_memory_bytes(self) -> int | None:
        """Nobody counts."""
        return None

    async def read_file(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """Read ``path`` of the host."""
        self._check_alive()
        return _read(Path(path), max_bytes)

    async def _spawn(self, command: str, log: IO[bytes], secret: str) -> asyncio.subprocess.Process:
        secret_fd = pipe_holding(secret)
        take = f"exec {SECRET_FD}<&{secret_fd} {secret_fd}<&-\n" if secret else ""
        try:
            return await self._bash(take + command, log, secret_fd)
        finally:
            os.close(secret_fd)

    async def _bash(
        self, command: str, log: IO[bytes], secret_fd: int
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            command,
            cwd=self._folder,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(secret_fd,),
        )

    def kill(self) -> None:
        """Die, as a sandbox does whose machine takes it away."""
        self._dead = True
        for process in self._running:
            _kill_group(process)

    def _check_alive(self) -> None:
        if self._dead:
            raise SandboxDied(f"the sandbox {self._id} is gone")


class FakeSandboxBackend:
    """Starts :class:`FakeSandbox` es.

    Attributes:
        live: the sandboxes that run now.
        num_started: how many ever did.
    """

    def __init__(self) -> None:
        self.live: list[FakeSandbox] = []
        self.num_started = 0

    @property
    def name(self) -> str:
        """``fake``."""
        return "fake"

    async def check(self) -> None:
        """It works everywhere."""

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        """There are no images to fetch."""

    async def identify(self, image: str) -> str:
        """``fake``, whatever the image."""
        return "fake"

    async def prepare(self, spec: SandboxSpec) -> None:
        """There are no images, and so nothing to hide in them."""

    @asynccontextmanager
    async def start(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """Make a folder with the files of ``spec`` as a repository."""
        root = Path(tempfile.mkdtemp(prefix="palestra-fake-"))
        sandbox = FakeSandbox(root / "work", spec)
        try:
            (root / "work").mkdir()
            if spec.files:
                write_repository(root / "work", spec.files)
            self.live.append(sandbox)
            self.num_started += 1
            yield sandbox
        finally:
            sandbox.kill()
            if sandbox in self.live:
                self.live.remove(sandbox)
            _remove(root, sandbox.sandbox_id)


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _read(path: Path, max_bytes: int) -> bytes:
    data = path.read_bytes()
    if len(data) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes")
    return data


def _remove(folder: Path, sandbox_id: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for left in Path(tempfile.gettempdir()).glob(f"palestra-{sandbox_id}*"):
        left.unlink()
