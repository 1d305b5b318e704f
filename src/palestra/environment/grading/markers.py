"""Where in a log the output of the tests lies."""

from __future__ import annotations

from dataclasses import dataclass

from palestra.tasks.swegym import END_MARKER, START_MARKER


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedOutput:
    """What lies between the markers; ``started`` and ``finished`` say which were there."""

    text: str
    started: bool
    finished: bool


def marked_output(log: str) -> MarkedOutput:
    """Cut the output of the tests out of ``log``.

    The markers stand in a trace (``+ : '>>>>> Start Test Output'``) or are
    echoed. Without the start marker the tests never ran.
    """
    _, start, rest = log.partition(START_MARKER)
    # The last end marker: what a test prints must not cut off the tests after it.
    text, end, tail = rest.rpartition(END_MARKER)
    return MarkedOutput(text=text if end else tail, started=bool(start), finished=bool(end))
