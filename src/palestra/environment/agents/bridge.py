"""One thread per synchronous agent, and its way back into the event loop.

The thread belongs to one episode (never to a shared pool, which long episodes
would fill), and cancelling the episode ends it: whatever it waits for in the loop
is cancelled, and :class:`ThreadCancelled` is raised where it waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

END_TIMEOUT_S = 5.0
"""How long a cancelled thread may take to end before it is left to itself."""


class ThreadCancelled(BaseException):
    """Raised inside the thread; no ``except Exception`` of an agent may swallow it."""


class LoopBridge:
    """Lets a thread await coroutines of the event loop, one at a time, until it is closed.

    Only :meth:`call` is for the thread; all state is touched in the loop alone, so
    there is nothing to lock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._closed = False

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` in the loop and wait for what it returns or raises.

        Raises:
            ThreadCancelled: the episode was cancelled, before or meanwhile.
        """
        answer: Future[T] = Future()
        try:
            self._loop.call_soon_threadsafe(self._start, work, answer)
        except RuntimeError:  # the loop is closed: nobody will ever answer
            raise ThreadCancelled from None
        return answer.result()

    def close(self) -> None:
        """Cancel what the thread waits for, and refuse what it asks for next."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    def _start(self, work: Callable[[], Coroutine[Any, Any, T]], answer: Future[T]) -> None:
        if self._closed:
            answer.set_exception(ThreadCancelled())
            return
        self._task = self._loop.create_task(work())
        self._task.add_done_callback(lambda task: self._finish(task, answer))

    def _finish(self, task: asyncio.Task[T], answer: Future[T]) -> None:
        self._task = None
        if task.cancelled():
            answer.set_exception(ThreadCancelled())
        elif (error := task.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())


async def run_in_thread(work: Callable[[LoopBridge], T], *, name: str) -> T:
    """Run ``work`` in a thread of its own and wait for it.

    Cancelling this closes the bridge and waits until the thread has ended, so that
    nothing of the episode is still at work afterwards.
    """
    loop = asyncio.get_running_loop()
    bridge = LoopBridge(loop)
    ended = asyncio.Event()
    outcome: Future[T] = Future()

    def main() -> None:
        try:
            outcome.set_result(work(bridge))
        except BaseException as error:
            outcome.set_exception(error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=main, name=name, daemon=True).start()
    try:
        await ended.wait()
    except asyncio.CancelledError:
        bridge.close()
        await _wait_for_end(ended)
        raise
    try:
        return outcome.result()
    except ThreadCancelled:  # the loop cancelled its call, not us
        raise asyncio.CancelledError from None


async def _wait_for_end(ended: asyncio.Event) -> None:
    deadline_s = time.monotonic() + END_TIMEOUT_S
    while not ended.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
        # A second cancellation must not leave the thread behind either.
        with suppress(asyncio.CancelledError, TimeoutError):
            await asyncio.wait_for(ended.wait(), left_s)
