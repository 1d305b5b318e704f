"""Runs one command and ends it, with all its children, when the parent goes away.

::

    python keeper.py GRACE_S COMMAND [ARGUMENT ...]

The parent holds the other end of stdin: when that closes, however the parent ended, the
command's process group gets SIGTERM and, after the grace, SIGKILL. When the command ends by
itself, what it left behind in its group is killed. Run by its path and isolated, so it
imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

POLL_S = 0.2
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command; its exit code, or 128 and the number of the signal that ended it."""
    grace_s, command = float(arguments[0]), arguments[1:]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_of_its_own())
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    try:
        while process.poll() is None:
            readable, _, _ = select.select([0], [], [], POLL_S)
            if readable and not os.read(0, 1):
                _signal(process, signal.SIGTERM)
                _wait(process, grace_s)
                break
    finally:
        _signal(process, signal.SIGKILL)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until_s:
        time.sleep(POLL_S / 4)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _of_its_own() -> Callable[[], None]:
    """What a child does first: lead a group, and die if the keeper is killed."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        os.setpgid(0, 0)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return prepare


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
