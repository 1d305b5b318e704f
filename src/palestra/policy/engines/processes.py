"""Engine servers as processes of ours: started, heard, and ended with all their children."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from palestra.errors import EngineError

GRACE_S = 20.0
_LAST_LINES, _LAST_BYTES = 12, 8192
_KEEPER = Path(__file__).with_name("keeper.py")


class Launched:
    """A server's process; it ends when this process does, even by ``kill -9``.

    Args:
        command: program and arguments.
        log: file that its output is appended to.
        environment: variables beside those of this process.
        start_timeout_s: seconds that it may take until it is healthy.
        grace_s: seconds from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 900.0,
        grace_s: float = GRACE_S,
    ) -> None:
        self._command = tuple(command)
        self._log = log
        self._environment = dict(environment or {})
        self._start_timeout_s = start_timeout_s
        self._grace_s = grace_s
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def start_timeout_s(self) -> float:
        """Seconds that it may take from its start until it is healthy."""
        return self._start_timeout_s

    @property
    def pid(self) -> int | None:
        """Of the server's keeper; ``None`` when nothing runs."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def up(self) -> None:
        """Start the process, unless it runs.

        Raises:
            EngineError: it cannot be started, or its log cannot be written.
        """
        if self.pid is not None:
            return
        try:
            self._log_start = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    # Isolated: it must start at once, whatever is installed.
                    *(sys.executable, "-I", "-S", str(_KEEPER), str(self._grace_s)),
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self._environment},
                    # A Ctrl-C of the terminal must not end it before its last answers.
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"cannot start {self._command[0]}: {error.strerror}") from error

    async def gone(self) -> str:
        """Wait until the process ends; how it ended."""
        if self._process is None:
            return "was not started"
        code = await self._process.wait()
        # As shells do, the keeper says 128 and the signal's number.
        number = -code if code < 0 else code - 128
        return f"ended by signal {number}" if number > 0 else f"ended with code {code}"

    async def down(self) -> None:
        """End the process and its children; returns when it is gone, also under cancellation."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._grace_s + 5.0)
        finally:
            if process.returncode is None:
                process.kill()  # and the server with it
                await process.wait()

    def last_words(self) -> str:
        """The last lines of this start's output, each on a line of its own after a line break."""
        try:
            with self._log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _LAST_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        lines = [line.rstrip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
        return "".join(f"\n    {line[:300]}" for line in lines)
