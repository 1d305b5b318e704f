"""A shell kept open inside a sandbox, and the commands that it starts one by one.

The shell is pid 1 of the sandbox, so no command can kill it. It reads one line a
command from its stdin (``NUMBER HOW SECRET``), finds the command's text in a folder that
is bound read-only into the sandbox, starts a fresh process for it in a group of
its own, with stdout and stderr on a FIFO in that folder, and answers
``NUMBER STATUS`` on its own stdout, which commands do not inherit.

What is inside is hostile: everything that arrives here is bytes to be bounded and
parsed, and the host opens only paths in its own folder, which the inside cannot write.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from palestra.environment.sandboxes import processes
from palestra.environment.sandboxes.output import HeadAndTail
from palestra.errors import SandboxDied, SandboxError

# MAX_ARG_STRLEN is 128 KiB; longer commands run as a script file.
_MAX_ARGUMENT_BYTES = 100_000
_CHUNK_BYTES = 1 << 16
_CHUNKS_A_TURN = 16
_MAX_STATUS_LINE_BYTES = 64
_GRACE_S = 0.05
_KILL_INTERVAL_S = 0.5
_NUM_KILLS = 20
_CLEAR_POLL_S = 0.005
_NUM_CLEAR_POLLS = 4000
_POLLS_A_KILL = 20
_MAX_DISCARDED_BYTES = 64 << 20
_MAX_DISCARDING = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended: its exit code (-1: timed out) and what it printed."""

    exit_code: int
    timed_out: bool
    output: HeadAndTail
    duration_s: float


class Channel:
    """Runs commands through the shell, one at a time.

    Args:
        control_fd: writes to the shell's stdin; owned by the channel from now on.
        status_fd: reads the shell's stdout; owned by the channel from now on.
        has_bash: whether the shell is bash; else commands run as script files.
    """

    def __init__(self, *, control_fd: int, status_fd: int, has_bash: bool) -> None:
        self._control_fd = control_fd
        self._status_fd = status_fd
        self._folder_fd = -1
        self._has_bash = has_bash
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._number = 0
        self._init_pid: int | None = None
        self._init_fd: int | None = None
        self._pending = b""
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._status: asyncio.Future[int] | None = None
        self._discarding: list[_OutputPipe] = []
        self._death: str | None = None
        self._closed = False
        os.set_blocking(control_fd, False)
        os.set_blocking(status_fd, False)
        self._loop.add_reader(status_fd, self._read_status)

    def use_folder(self, folder_fd: int) -> None:
        """Learn the folder (owned from now on) that the sandbox sees as its ``MOUNT_POINT``."""
        self._folder_fd = folder_fd

    @contextmanager
    def laid_file(self, name: str, data: bytes) -> Iterator[None]:
        """Have a file of this ``name`` in the folder.

        Raises:
            SandboxDied: the sandbox is gone.
            OSError: it cannot be written.
        """
        self._check()
        _write_new(name, data, self._folder_fd)
        try:
            yield
        finally:
            _remove(name, self._folder_fd)

    async def wait_ready(self) -> None:
        """Wait until the shell takes commands.

        Raises:
            SandboxDied: it ended instead.
        """
        await asyncio.shield(self._ready)

    def watch(self, init_pid: int, init_fd: int) -> None:
        """Learn the shell's pid on the host and its pidfd (owned from now on)."""
        self._init_pid = init_pid
        self._init_fd = init_fd
        self._loop.add_reader(init_fd, self._on_init_exit)

    async def run(
        self,
        command: str | bytes,
        *,
        timeout_s: float,
        output_limit_bytes: int,
        secret: str = "",
    ) -> Finished:
        """Run one command; on time-out kill it and return what it printed so far.

        Raises:
            SandboxDied: the sandbox is gone, before or in the middle.
        """
        async with self._turn:
            self._check()
            self._number += 1
            output = HeadAndTail(output_limit_bytes)
            started_s = time.monotonic()
            with self._laid_out(command, output.feed) as (how, pipe):
                self._send(f"{self._number} {how} {secret}\n".encode())
                exit_code, timed_out = await self._status_within(timeout_s)
                await pipe.drain(grace_s=_GRACE_S)
            return Finished(
                exit_code=exit_code,
                timed_out=timed_out,
                output=output,
                duration_s=time.monotonic() - started_s,
            )

    def kill_commands(self) -> None:
        """Have the shell kill everything inside but itself, before it starts another command."""
        if self._init_fd is not None and not self._closed:
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGUSR2)

    async def clear(self) -> None:
        """Kill everything inside but the shell and wait until it is gone.

        Raises:
            SandboxDied: something could not be killed.
        """
        async with self._turn:
            for poll in range(_NUM_CLEAR_POLLS):
                if self._init_pid is None or self._death is not None:
                    return
                if not any(processes.descendants(self._init_pid)):
                    return
                if poll % _POLLS_A_KILL == 0:
                    self.kill_commands()
                await asyncio.sleep(_CLEAR_POLL_S)
            raise self._die("its processes could not be killed")

    def close(self) -> None:
        """Give back every file descriptor; commands in flight end with ``SandboxDied``."""
        if self._closed:
            return
        self._die("it was stopped")
        self._closed = True
        for pipe in self._discarding:
            pipe.close()
        self._discarding.clear()
        self._loop.remove_reader(self._status_fd)
        os.close(self._status_fd)
        os.close(self._control_fd)
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1
        if self._init_fd is not None:
            self._loop.remove_reader(self._init_fd)
            os.close(self._init_fd)

    async def _status_within(self, timeout_s: float) -> tuple[int, bool]:
        """Wait for the status of the command in flight: (exit code, whether it timed out)."""
        status = self._status
        assert status is not None
        with suppress(TimeoutError):
            return await _within(timeout_s, status), False
        # Again and again: the shell may start the command only after the first kill.
        for attempt in range(_NUM_KILLS):
            self.kill_commands()
            if attempt > 0 and self._init_pid is not None:
                processes.kill_all_but(self._init_pid)
            with suppress(TimeoutError):
                await _within(_KILL_INTERVAL_S, status)
                return -1, True
        raise self._die("its shell no longer answers")

    @contextmanager
    def _laid_out(
        self, command: str | bytes, feed: Callable[[bytes], None]
    ) -> Iterator[tuple[str, _OutputPipe]]:
        """Lay the command's text and FIFO into the folder; yield how to run it, and the pipe."""
        # No argument can hold a NUL; bash drops them from scripts as well.
        text = command.encode("utf-8", "replace") if isinstance(command, str) else command
        text = text.replace(b"\0", b"")
        how = "text" if self._has_bash and len(text) <= _MAX_ARGUMENT_BYTES else "file"
        source, fifo, folder_fd = f"{self._number}.in", f"{self._number}.out", self._folder_fd
        pipe: _OutputPipe | None = None
        self._status = self._loop.create_future()
        try:
            _write_new(source, text, folder_fd)
            os.mkfifo(fifo, 0o600, dir_fd=folder_fd)
            pipe = _OutputPipe(fifo, folder_fd, feed)
            yield how, pipe
        except asyncio.CancelledError:
            # A command that has not opened its FIFO yet fails to, once that is gone.
            self.kill_commands()
            raise
        except OSError as error:
            raise SandboxError(f"cannot hand a command to the sandbox: {error}") from error
        finally:
            self._status = None
            _remove(source, self._folder_fd)
            _remove(fifo, self._folder_fd)
            if pipe is not None:
                self._retire(pipe)

    def _send(self, line: bytes) -> None:
        try:
            # One short line into an empty pipe: never partial, never blocking.
            os.write(self._control_fd, line)
        except OSError as error:
            raise self._die(f"its shell takes no commands ({error.strerror})") from None

    def _read_status(self) -> None:
        try:
            data = os.read(self._status_fd, 4096)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._status_fd)
            self._die("its shell ended")
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._take_status(line)
        # A command can write here too, by way of /proc/1/fd: junk is junk, and bounded.
        # The shell starts its answers on a fresh line for that reason.
        self._pending = self._pending[-_MAX_STATUS_LINE_BYTES:]

    def _take_status(self, line: bytes) -> None:
        if line == b"ready":
            if not self._ready.done():
                self._ready.set_result(None)
            return
        number, _, code = line.partition(b" ")
        if self._status is None or self._status.done() or number != b"%d" % self._number:
            return  # of a command that was cancelled
        if code.isdigit() and int(code) < 256:
            self._status.set_result(int(code))

    def _on_init_exit(self) -> None:
        assert self._init_fd is not None
        self._loop.remove_reader(self._init_fd)
        self._die("its first process ended")

    def _die(self, why: str) -> SandboxDied:
        self._death = self._death or why
        for future in (self._ready, self._status):
            if future is not None and not future.done():
                future.set_exception(self._died())
                future.exception()  # seen: nobody may be waiting any more
        return self._died()

    def _died(self) -> SandboxDied:
        return SandboxDied(f"the sandbox is gone: {self._death}")

    def _check(self) -> None:
        if self._death is not None:
            raise self._died()

    def _retire(self, pipe: _OutputPipe) -> None:
        """Close the pipe, or keep it drained for the children that still write to it.

        Closing it would kill a server that was started in the background and logs.
        """
        self._discarding = [old for old in self._discarding if not old.ended]
        if pipe.ended or self._closed or self._death is not None:
            pipe.close()
            return
        while len(self._discarding) >= _MAX_DISCARDING:
            self._discarding.pop(0).close()
        pipe.discard(_MAX_DISCARDED_BYTES)
        self._discarding.append(pipe)


class _OutputPipe:
    """The reading end of a command's FIFO; reads on the event loop."""

    def __init__(self, name: str, folder_fd: int, feed: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._feed: Callable[[bytes], None] | None = feed
        self._budget_bytes: int | None = None
        self._end = asyncio.Event()
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(name, flags, dir_fd=folder_fd)
        self._loop.add_reader(self._fd, self._read)

    @property
    def ended(self) -> bool:
        """Whether every writer is gone, or we closed."""
        return self._end.is_set()

    async def drain(self, *, grace_s: float) -> None:
        """Read what is there; wait a little for the end where children keep it open."""
        self._read()
        if self.ended:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._end.wait()
        if not self.ended:
            self._read()

    def discard(self, budget_bytes: int) -> None:
        """Keep reading, throw away, and close after ``budget_bytes``."""
        self._feed = None
        self._budget_bytes = budget_bytes

    def close(self) -> None:
        """Stop reading; who still writes gets EPIPE."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._end.set()

    def _read(self) -> None:
        # Bounded, so that one chatty sandbox does not starve the others.
        for _ in range(_CHUNKS_A_TURN):
            if self._fd < 0:
                return
            try:
                data = os.read(self._fd, _CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            if self._feed is not None:
                self._feed(data)
            elif self._budget_bytes is not None:
                self._budget_bytes -= len(data)
                if self._budget_bytes < 0:
                    self.close()


async def _within(timeout_s: float, status: asyncio.Future[int]) -> int:
    # Not wait_for(), which in Python 3.11 swallows a cancellation that comes with the result.
    async with asyncio.timeout(timeout_s):
        return await asyncio.shield(status)


def _write_new(name: str, data: bytes, folder_fd: int) -> None:
    """Write ``data`` to a file that must not exist yet, through no symlink."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder_fd), "wb") as file:
        file.write(data)


def _remove(name: str, folder_fd: int) -> None:
    # Closed meanwhile: then the folder is gone with all that was in it.
    if folder_fd >= 0:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder_fd)
