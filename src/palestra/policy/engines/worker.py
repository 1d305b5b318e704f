"""The thread that owns a batch and steps it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch

from palestra.errors import EngineError
from palestra.policy.engines.batch import Batch
from palestra.policy.engines.request import Request

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errand:
    """Something to do between two steps, and who waits for it."""

    run: Callable[[], None]
    future: Future[Any]


class Worker:
    """Steps a batch in a thread of its own until stopped or broken.

    Whatever ends the thread, everyone who waits or comes later is answered.

    Args:
        batch: touched by no other thread from :meth:`start` on.
        num_threads: PyTorch's CPU threads, process-wide as PyTorch has it: set from
            this thread before its first step, and left alone when ``None``.
    """

    def __init__(self, batch: Batch, *, num_threads: int | None = None) -> None:
        self._batch = batch
        self._num_threads = num_threads
        self._inbox: SimpleQueue[_Errand | None] = SimpleQueue()
        self._lock = threading.Lock()  # between failing and putting into the inbox
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="palestra-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hand over a request; its future gets the answer.

        Raises:
            EngineError: the engine is closed or broken.
        """
        self._put(_Errand(run=lambda: self._batch.add(request), future=request.future))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` in the thread between two steps.

        An ``EngineError`` is the caller's to handle; anything else breaks the engine.

        Raises:
            EngineError: the engine is closed or broken.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except EngineError as error:
                future.set_exception(error)
            except BaseException as error:
                future.set_exception(_engine_error(error))
                raise
            else:
                future.set_result(result)

        self._put(_Errand(run=run, future=future))
        return future

    def stop(self) -> None:
        """Ask the thread to end after its current step."""
        self._inbox.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread's end; false when it did not come in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, errand: _Errand) -> None:
        with self._lock:
            if self._failure is not None:
                raise _engine_error(self._failure)
            self._inbox.put(errand)

    def _main(self) -> None:
        try:
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)
            with torch.inference_mode():
                while self._run_errands():
                    self._batch.step()
        except BaseException as error:  # the thread's boundary: whoever waits must hear of it
            self._fail(error)
        else:
            self._fail(EngineError("it was closed"))

    def _run_errands(self) -> bool:
        """Do all that waits; with nothing to step, wait. False: stop."""
        while True:
            try:
                errand = self._inbox.get(block=not self._batch.busy)
            except Empty:
                return True
            if errand is None:
                return False
            errand.run()

    def _fail(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = failure
        futures: list[Future[Any]] = [request.future for request in self._batch.requests]
        while True:
            try:
                errand = self._inbox.get(block=False)
            except Empty:
                break
            if errand is not None:
                futures.append(errand.future)
        for future in futures:
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(_engine_error(failure))


def _engine_error(cause: BaseException) -> EngineError:
    # A new one for everybody, since raising an error changes it.
    reason = cause.message if isinstance(cause, EngineError) else repr(cause)
    error = EngineError(f"the engine stopped: {reason}")
    error.__cause__ = cause
    return error
