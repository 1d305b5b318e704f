"""Runs a command's coroutine so that Ctrl-C and SIGTERM end it cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from palestra.cli.terminal import say

T = TypeVar("T")


def run_cancellable(main: Coroutine[Any, Any, T], *, stopping: str) -> T:
    """Run ``main``; the first SIGINT or SIGTERM cancels it, a second one kills the process.

    Args:
        main: what to run; it cleans up when it is cancelled.
        stopping: said at the first signal.

    Raises:
        KeyboardInterrupt: a signal ended it.
    """
    interrupted = False

    async def guarded() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main)

        def on_signal() -> None:
            nonlocal interrupted
            if interrupted:
                # What is left behind is recorded in leases and reaped at the next start.
                os._exit(130)
            interrupted = True
            say(f"{stopping} (once more to kill it)")
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            return await task
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
