"""How long a run will go on, from its last steps."""

from __future__ import annotations

from collections import deque

from palestra.report.words import duration

_STEPS_LOOKED_AT = 20


class TimeLeft:
    """Reckons from the mean of the last steps, which change as the policy does.

    Args:
        num_steps: of the whole run.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._lasted_s: deque[float] = deque(maxlen=_STEPS_LOOKED_AT)
        self._done = 0

    def add(self, step: int, lasted_s: float | None) -> None:
        """Take note of a step that is complete.

        Args:
            step: its number, from 1.
            lasted_s: how long it took; ``None`` when it did not say.
        """
        self._done = step
        if lasted_s is not None:
            self._lasted_s.append(lasted_s)

    def seconds(self) -> float | None:
        """Left, evaluations and checkpoints not counted; ``None`` while nobody can tell."""
        if not self._lasted_s:
            return None
        mean_s = sum(self._lasted_s) / len(self._lasted_s)
        return mean_s * max(0, self._num_steps - self._done)

    def words(self) -> str:
        """As ``6 min 5 s left``; empty while nobody can tell, or when nothing is left."""
        seconds = self.seconds()
        return f"{duration(seconds)} left" if seconds else ""
