"""A shell kept open in a container, and the commands that it starts one by one.

The shell is the container's pid 1 (:mod:`~palestra.environment.sandboxes.engine_shell`). It
reads each command, with a number and a nonce, from its stdin, and says ``NUL NONCE begin NUL``
and ``NUL NONCE STATUS NUL`` around what the command prints; everything outside of that is
thrown away. The nonce is fresh for each command, so that no command's output can end another's.

A command prints into a pipe of its own, which a ``cat`` forwards. The shell writes the end
into that same pipe, behind everything that the command has written, and so knows nothing of
children that keep the pipe open: their ``cat`` is killed before the next command begins, and
what they print from then on is drained and dropped.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from palestra.environment.sandboxes.engine_shell import Ready, closing, framed
from palestra.environment.sandboxes.engine_stream import EngineStream
from palestra.environment.sandboxes.launch import uninterrupted
from palestra.environment.sandboxes.output import HeadAndTail
from palestra.errors import SandboxDied, SandboxError

_KILL_INTERVAL_S = 0.5
_NUM_KILLS = 20
_MAX_STATUS_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended: its exit code (-1: timed out) and what it printed."""

    exit_code: int
    timed_out: bool
    output: HeadAndTail
    duration_s: float


class _Expected:
    """Cuts one command's output out of the stream."""

    def __init__(self, nonce: str, output: HeadAndTail, *, begun: bool) -> None:
        self.nonce = nonce
        self._begin = f"\0{nonce} begin\0".encode()
        self._end = f"\0{nonce} ".encode()
        self._begun = begun
        self._output = output
        self._held = b""
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        if self.status.done():
            return
        self._held += data
        if not self._begun and not self._find_begin():
            return
        at = self._held.find(self._end)
        if at < 0:
            # The end may have come in part.
            safe = max(0, len(self._held) - len(self._end) + 1)
            self._output.feed(self._held[:safe])
            self._held = self._held[safe:]
            return
        self._output.feed(self._held[:at])
        self._held = self._held[at:]
        status, nul, _ = self._held[len(self._end) :].partition(b"\0")
        if nul and status.isdigit():
            self.status.set_result(int(status))
        elif nul or len(status) > _MAX_STATUS_BYTES:
            self._output.feed(self._end)
            self._held = self._held[len(self._end) :]

    def _find_begin(self) -> bool:
        _, begin, rest = self._held.partition(self._begin)
        if begin:
            self._begun, self._held = True, rest
            return True
        # A command that is killed at once ends without having begun.
        if self._end + b"137\0" in self._held:
            self.status.set_result(137)
        self._held = self._held[-len(self._begin) - _MAX_STATUS_BYTES :]
        return False


class EngineChannel:
    """Runs commands through the shell, one at a time.

    Args:
        stream: to the shell; owned by the channel from now on.
        nonce: what the shell answers when it is ready.
        kill_commands: has the engine send USR2 to the shell.
    """

    def __init__(
        self,
        stream: EngineStream,
        *,
        nonce: str,
        kill_commands: Callable[[], Awaitable[object]],
    ) -> None:
        self._stream = stream
        self._kill_commands = kill_commands
        self._turn = asyncio.Lock()
        self._number = 0
        self._secret = nonce
        self._shell = Ready.BASH
        self._death: str | None = None
        self._complaint = HeadAndTail(4096)
        self._expected: _Expected | None = _Expected(nonce, self._complaint, begun=True)
        self._ready = self._expected
        self._reading = asyncio.create_task(self._read())

    async def wait_ready(self) -> Ready:
        """Wait until the shell takes commands; tell which one it is, or that it cannot.

        Raises:
            SandboxDied: it ended instead; with what it said.
        """
        self._shell = Ready(await asyncio.shield(self._ready.status))
        return self._shell

    async def run(
        self, command: str, *, timeout_s: float, output_limit_bytes: int, key: str = ""
    ) -> Ended:
        """Run one command; on time-out kill it and return what it printed so far.

        Args:
            command: at most about 100 kB, since it becomes one argument.
            timeout_s: until it is killed.
            output_limit_bytes: head and tail together.
            key: what the command can read once, from descriptor 7.

        Raises:
            SandboxDied: the sandbox is gone, before or in the middle.
        """
        async with self._turn:
            if self._death is not None:
                raise self._died()
            self._number += 1
            nonce = secrets.token_hex(8)
            output = HeadAndTail(output_limit_bytes)
            expected = _Expected(nonce, output, begun=False)
            self._expected = expected
            started_s = time.monotonic()
            text = command.encode("utf-8", "replace").replace(b"\0", b"")
            frame = framed(
                text,
                number=self._number,
                nonce=nonce,
                secret=self._secret,
                shell=self._shell,
                key=key,
            )
            try:
                exit_code, timed_out = await self._run(frame, expected, timeout_s)
            except asyncio.CancelledError:
                # Until it has ended, nothing else may begin.
                with suppress(SandboxError):
                    await uninterrupted(self._kill_until_ended(expected))
                raise
            finally:
                self._expected = None
            return Ended(
                exit_code=exit_code,
                timed_out=timed_out,
                output=output,
                duration_s=time.monotonic() - started_s,
            )

    async def aclose(self) -> None:
        """Close the stream; commands in flight end with ``SandboxDied``."""
        self._die("it was stopped")
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        await self._stream.aclose()

    async def _run(self, line: bytes, expected: _Expected, timeout_s: float) -> tuple[int, bool]:
        try:
            async with asyncio.timeout(timeout_s):
                await self._stream.send(line)
                return await asyncio.shield(expected.status), False
        except OSError as error:  # TimeoutError is one
            if not isinstance(error, TimeoutError):
                raise self._die(f"its shell takes no commands ({error.strerror})") from None
        await self._kill_until_ended(expected)
        return -1, True

    async def _kill_until_ended(self, expected: _Expected) -> None:
        # Again and again: the shell may start the command only after the first kill.
        for _ in range(_NUM_KILLS):
            await self._kill_commands()
            await self._close_frame(expected)
            with suppress(TimeoutError):
                async with asyncio.timeout(_KILL_INTERVAL_S):
                    await asyncio.shield(expected.status)
                    return
        raise self._die("its shell no longer answers")

    async def _close_frame(self, expected: _Expected) -> None:
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_KILL_INTERVAL_S):
                await self._stream.send(closing(expected.nonce, self._shell))

    async def _read(self) -> None:
        async for data in self._stream.chunks():
            if self._expected is not None:
                self._expected.feed(data)
        said = self._complaint.text().strip()
        self._die(f"its first process ended{': ' + said if said else ''}")

    def _die(self, why: str) -> SandboxDied:
        self._death = self._death or why
        for expected in (self._ready, self._expected):
            if expected is not None and not expected.status.done():
                expected.status.set_exception(self._died())
                expected.status.exception()  # seen: nobody may be waiting any more
        return self._died()

    def _died(self) -> SandboxDied:
        return SandboxDied(f"the sandbox is gone: {self._death}")
