"""Runs a command's coroutine so that Ctrl-C and SIGTERM end it cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
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


def run_until_stopped(
    main: Callable[[asyncio.Event], Coroutine[Any, Any, T]],
    *,
    watch: Callable[[], Coroutine[Any, Any, None]] | None,
    stopping: str,
) -> T:
    """Run a server; the first signal, or the end of ``watch``, sets its stop event.

    A second signal cancels it, so that it ends at once but still cleans up.
    """

    async def guarded() -> T:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        task = asyncio.ensure_future(main(stop))
        watcher = asyncio.ensure_future(watch()) if watch else None
        if watcher is not None:
            # Nobody is left to take the answers: do not wait for episodes to end.
            watcher.add_done_callback(lambda _: task.cancel())

        def on_signal() -> None:
            if stop.is_set():
                task.cancel()
            else:
                say(f"{stopping} (once more to cancel them)")
                stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            return await task
        finally:
            if watcher is not None:
                watcher.cancel()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
