"""Keeps a logger away from the run: a thread of its own, and no failure leaves it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from palestra.run.loggers.protocol import LoggedRun, MetricLogger, OpenLogger

CLOSE_TIMEOUT_S = 30.0
MAX_WAITING = 1000


class BackgroundLogger:
    """Hands metrics to a logger in a thread; a context manager.

    A logger that fails, at its opening or later, is said once and not used again. One that
    hangs loses what does not fit the queue, and is left behind at the end.

    Args:
        name: of the logger.
        open_logger: opens it, in the thread.
        run: whose metrics they are.
        say: told of the failure, in one line, from the thread.
        close_timeout_s: how long the end of the run waits for it.
    """

    def __init__(
        self,
        name: str,
        open_logger: OpenLogger,
        run: LoggedRun,
        *,
        say: Callable[[str], None],
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ) -> None:
        self._name = name
        self._open = open_logger
        self._run = run
        self._say = say
        self._close_timeout_s = close_timeout_s
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue()
        self._has_failed = False
        self._num_lost = 0
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step; returns at once."""
        if self._has_failed:
            return
        if self._waiting.qsize() >= MAX_WAITING:
            self._num_lost += 1
            return
        self._waiting.put((step, dict(metrics)))

    def __enter__(self) -> BackgroundLogger:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join(self._close_timeout_s)
        if self._thread.is_alive():
            self._say(
                f"logger {self._name} did not end in {self._close_timeout_s:g} s: left behind"
            )
        if self._num_lost:
            self._say(f"logger {self._name} was too slow: it lost {self._num_lost} steps")

    def _work(self) -> None:
        logger: MetricLogger | None = None
        try:
            logger = self._open(self._run)
            while (item := self._waiting.get()) is not None:
                logger.log(*item)
            logger.close()
        except (Exception, SystemExit) as error:  # whatever a stranger's package raises
            self._has_failed = True
            what = " ".join(str(error).split())[:300]
            self._say(
                f"logger {self._name} failed and is not used any more: "
                f"{type(error).__name__}: {what}; the run goes on"
            )
