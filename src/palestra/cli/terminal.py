"""What a command says: errors in one line, progress calm on a terminal and plain elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from palestra.errors import PalestraError

PLAIN_INTERVAL_S = 5.0


def say_error(error: PalestraError) -> None:
    """Print what was wrong and what to do, in one line on stderr."""
    text = " ".join(error.message.split())
    hint = f" → {' '.join(error.hint.split())}" if error.hint else ""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"error: {text}{hint}", markup=False, style="red" if sys.stderr.isatty() else None
    )


def say(text: str) -> None:
    """Print a plain line on stderr, which keeps stdout for results."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)


class Counter:
    """Progress of a number of things: a bar on a terminal, a line now and then elsewhere.

    Args:
        what: is counted.
        total: how many there are; ``None`` while nobody knows.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._note = ""
        self._said_at = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._row = self._bar.add_task(what, total=total, note="")

    def advance(self, note: str = "") -> None:
        """Count one more; ``note`` stands behind the count."""
        self._done += 1
        self._note = note
        if self._bar is not None:
            self._bar.update(self._row, advance=1, note=note)
        elif time.monotonic() - self._said_at > PLAIN_INTERVAL_S:
            self._said_at = time.monotonic()
            total = "" if self._total is None else f" of {self._total}"
            say(f"{self._what}: {self._done}{total} {note}".rstrip())

    def __enter__(self) -> Counter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
