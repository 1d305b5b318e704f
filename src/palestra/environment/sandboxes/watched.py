"""A sandbox that keeps account of the commands that ran in it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from palestra.environment.sandboxes.protocol import CommandResult, Sandbox
from palestra.records import CommandRun

OnCommand = Callable[[str | None], None]
"""Told of each command as it begins, and ``None`` when it has ended."""

KEPT_CHARS = 4096
"""Of the output of each command; enough to show where a repetition differs."""


def output_digest(output: str) -> str:
    """What tells two outputs apart, however long they are."""
    return hashlib.blake2b(output.encode(), digest_size=16).hexdigest()


class WatchedSandbox:
    """Passes everything on to a sandbox and notes each command, whichever agent ran it.

    Args:
        sandbox: does the work.
        on_command: told what is running now.
    """

    def __init__(self, sandbox: Sandbox, on_command: OnCommand) -> None:
        self._sandbox = sandbox
        self._on_command = on_command
        self._began_s = time.monotonic()
        self._commands: list[CommandRun] = []

    @property
    def commands(self) -> tuple[CommandRun, ...]:
        """What ran so far, in order; one that was cut off has no exit code."""
        return tuple(self._commands)

    @property
    def sandbox_id(self) -> str:
        """The sandbox's own."""
        return self._sandbox.sandbox_id

    @property
    def workdir(self) -> str:
        """The sandbox's own."""
        return self._sandbox.workdir

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit_bytes: int = 1 << 20,
        secret: str = "",
    ) -> CommandResult:
        """Run ``command`` and note when it began, how long it took and how it ended."""
        began_s = time.monotonic()
        result: CommandResult | None = None
        self._on_command(command)
        try:
            result = await self._sandbox.run(
                command, timeout_s=timeout_s, output_limit_bytes=output_limit_bytes, secret=secret
            )
            return result
        finally:
            self._on_command(None)
            self._commands.append(
                CommandRun(
                    command=command,
                    began_s=began_s - self._began_s,
                    duration_s=time.monotonic() - began_s,
                    exit_code=result.exit_code if result is not None else None,
                    timed_out=result is not None and result.timed_out,
                    output=None if result is None else result.output[:KEPT_CHARS],
                    output_digest=None if result is None else output_digest(result.output),
                )
            )

    async def write_file(self, path: str, data: bytes) -> None:
        """As the sandbox does."""
        await self._sandbox.write_file(path, data)

    async def read_file(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        """As the sandbox does."""
        return await self._sandbox.read_file(path, max_bytes=max_bytes)

    def peak_memory_bytes(self) -> int | None:
        """As the sandbox says."""
        return self._sandbox.peak_memory_bytes()
