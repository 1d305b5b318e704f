"""A public fake: a logger that remembers, fails or hangs as it is told."""

from __future__ import annotations

import threading
from collections.abc import Mapping


class FakeLogger:
    """Keeps what it is given.

    Args:
        fails_at: raises when it is given this step.
        hangs_at: blocks at this step until :attr:`released` is set.

    Attributes:
        logged: (step, metrics) in order.
        is_closed: whether it was closed.
        released: ends the hanging.
    """

    def __init__(self, *, fails_at: int | None = None, hangs_at: int | None = None) -> None:
        self._fails_at = fails_at
        self._hangs_at = hangs_at
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.is_closed = False
        self.released = threading.Event()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember, raise or block."""
        if step == self._fails_at:
            raise ConnectionError("the logger's server is gone")
        if step == self._hangs_at:
            self.released.wait()
        self.logged.append((step, dict(metrics)))

    def close(self) -> None:
        """Remember that it was closed."""
        self.is_closed = True
