"""Requests that come again: the same key gets the first answer, finished or not."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

GRACE_S = 1.0
"""How long work with a key goes on without anybody waiting: a client whose connection
broke asks again under the same key."""
KEPT_BYTES = 256 << 20
"""How much of the answers is kept for repeats; the oldest go first."""


class KeyReused(Exception):
    """A key came again with another request than the first."""


class Stopped(Exception):
    """The server stopped before there was an answer."""


@dataclass(slots=True, eq=False)
class _Job:
    task: asyncio.Task[bytes]
    subject: str
    num_waiting: int = 0


class Repeats:
    """Runs work once per key, and cancels what nobody waits for any more.

    Args:
        kept_bytes: bound of the finished answers that are kept.
        grace_s: how long work with a key outlives its last waiter.
    """

    def __init__(self, *, kept_bytes: int = KEPT_BYTES, grace_s: float = GRACE_S) -> None:
        self._kept_bytes = kept_bytes
        self._grace_s = grace_s
        self._running: set[_Job] = set()
        self._by_key: dict[str, _Job] = {}
        self._answers: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._num_bytes = 0

    async def run(
        self, key: str | None, subject: str, work: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> bytes:
        """Await ``work()``, or the work or answer that ``key`` already stands for.

        Args:
            key: names the request; ``None``: it is like no other.
            subject: what the request is about; must be the same for the same key.
            work: is cancelled when the last one who waits for it is.

        Raises:
            KeyReused: ``key`` stands for another subject.
            Stopped: the work was cancelled from elsewhere.
        """
        if key is not None and key in self._answers:
            known, answer = self._answers[key]
            _check_subject(key, known, subject)
            return answer
        job = self._by_key.get(key) if key is not None else None
        if job is None:
            job = self._start(key, subject, work)
        elif key is not None:
            _check_subject(key, job.subject, subject)
        job.num_waiting += 1
        try:
            await asyncio.wait({job.task})
        finally:
            job.num_waiting -= 1
            self._cancel_unless_wanted(job, self._grace_s if key is not None else 0.0)
        if job.task.cancelled():
            raise Stopped
        return job.task.result()

    async def aclose(self) -> None:
        """Cancel all work and wait until it has ended."""
        tasks = [job.task for job in self._running]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(
        self, key: str | None, subject: str, work: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> _Job:
        job = _Job(task=asyncio.create_task(work()), subject=subject)
        self._running.add(job)
        if key is not None:
            self._by_key[key] = job
        job.task.add_done_callback(lambda _: self._finish(key, job))
        return job

    def _finish(self, key: str | None, job: _Job) -> None:
        self._running.discard(job)
        if key is None:
            return
        if self._by_key.get(key) is job:
            del self._by_key[key]
        if not job.task.cancelled() and job.task.exception() is None:
            self._keep(key, job.subject, job.task.result())

    def _keep(self, key: str, subject: str, answer: bytes) -> None:
        self._answers[key] = (subject, answer)
        self._num_bytes += len(answer)
        while self._num_bytes > self._kept_bytes:
            _, (_, oldest) = self._answers.popitem(last=False)
            self._num_bytes -= len(oldest)

    def _cancel_unless_wanted(self, job: _Job, grace_s: float) -> None:
        if job.num_waiting or job.task.done():
            return
        if grace_s:
            loop = asyncio.get_running_loop()
            loop.call_later(grace_s, self._cancel_unless_wanted, job, 0.0)
            return
        # From here on the key starts anew: a cancelled episode is no answer.
        for key in [key for key, other in self._by_key.items() if other is job]:
            del self._by_key[key]
        job.task.cancel()


def _check_subject(key: str, known: str, subject: str) -> None:
    if known != subject:
        raise KeyReused(f"{key!r} was used for {known!r} before, now for {subject!r}")
