"""What a logger is: somewhere that named numbers of a step go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """What a logger is told of the run before its first number.

    Attributes:
        name: of the run.
        project: that it belongs to, in loggers that know projects.
        folder: of the run; what a logger keeps on this machine goes below it.
        config: the recipe's keys and values, without secrets.
    """

    name: str
    project: str
    folder: Path
    config: Mapping[str, Any]


class MetricLogger(Protocol):
    """Takes the metrics of one run; its methods may block and may raise anything."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of a step, under the names that ``metrics.csv`` has.

        A step may come again, when a run goes on from a checkpoint.
        """
        ...

    def close(self) -> None:
        """Hand over what is not handed over yet."""
        ...


OpenLogger = Callable[[LoggedRun], MetricLogger]
"""Opens a logger; may block and may raise anything."""
