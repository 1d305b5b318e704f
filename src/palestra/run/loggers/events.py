"""Passes the metrics of events on to loggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from palestra.events import EventSink

METRIC_KINDS = frozenset({"warmstart", "step", "evaluation"})


class StepSink(Protocol):
    """Takes the numbers of a step and returns at once."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take them."""
        ...


class LoggedEvents:
    """An event sink in front of another one: what it logs is what the event log has.

    Args:
        events: gets every event.
        loggers: get the metrics of warm start, steps and evaluations.
    """

    def __init__(self, events: EventSink, loggers: Sequence[StepSink]) -> None:
        self._events = events
        self._loggers = loggers

    def emit(self, kind: str, **fields: Any) -> None:
        """Record one event, and hand on its metrics if it has any."""
        self._events.emit(kind, **fields)
        if kind in METRIC_KINDS:
            for logger in self._loggers:
                logger.log(fields["step"], fields["metrics"])
