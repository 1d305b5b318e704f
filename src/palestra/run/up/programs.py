"""Running docker and compose, with their output at hand when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from palestra.errors import HostError

STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a program ended.

    Attributes:
        exit_code: 0 is success.
        output: stdout; with ``merged``, stderr as well.
    """

    exit_code: int
    output: str

    def last_lines(self, number: int) -> list[str]:
        """The end of the output, without empty lines."""
        lines = [line.rstrip() for line in self.output.splitlines() if line.strip()]
        return lines[-number:]


async def run_program(
    command: Sequence[str],
    *,
    timeout_s: float,
    variables: Mapping[str, str] | None = None,
    merged: bool = False,
) -> Done:
    """Run ``command`` to its end; cancelling stops it.

    Args:
        command: program and arguments.
        timeout_s: then it is stopped.
        variables: its whole environment; ``None``: ours.
        merged: take stderr together with stdout, else it is dropped.

    Raises:
        HostError: there is no such program, or it took too long.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if merged else asyncio.subprocess.DEVNULL,
            env=None if variables is None else dict(variables),
        )
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot run {command[0]}") from error
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        raise HostError(f"{' '.join(command[:3])} … did not end in {timeout_s:g} s") from None
    finally:
        await _stop(process)
    return Done(exit_code=process.returncode or 0, output=output.decode(errors="replace"))


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    # It may be in the middle of making containers: let it end that by itself.
    process.terminate()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    if process.returncode is None:
        process.kill()
        await process.wait()
