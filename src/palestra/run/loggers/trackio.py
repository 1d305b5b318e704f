"""Trackio, which keeps runs in a database on this machine (``trackio show`` draws them)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout

from palestra.run.loggers.protocol import LoggedRun


class TrackioLogger:
    """Logs to one trackio run, which a resumed run of ours goes on with.

    Args:
        run: whose metrics they are.
    """

    def __init__(self, run: LoggedRun) -> None:
        import trackio

        # It greets on stdout, where our result goes.
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=run.project,
                name=run.name,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Write what is left."""
        with redirect_stdout(sys.stderr):
            self._run.finish()
