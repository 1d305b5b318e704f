"""The append-only event log: one JSON object per line, read by people and by the dashboard.

A line is written in one ``write`` call and flushed, so a crash can tear at most
the last one; :func:`read_events` skips a torn tail.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import orjson


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened: its kind, when (Unix seconds), and its fields."""

    kind: str
    time_s: float
    fields: dict[str, Any]


class EventSink(Protocol):
    """Where components report what happened; they never know who reads it."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Record one event."""
        ...


class NullEvents:
    """A sink that forgets."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Forget the event."""


class MemoryEvents:
    """A sink that keeps events in a list, for tests and small programs."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, kind: str, **fields: Any) -> None:
        """Keep the event."""
        self.events.append(Event(kind=kind, time_s=time.time(), fields=fields))

    def of_kind(self, kind: str) -> list[Event]:
        """The events of one kind, oldest first."""
        return [e for e in self.events if e.kind == kind]


class EventLog:
    """Appends events to a JSONL file; safe from several threads of one process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A crash may have torn the last line; start on a fresh one.
        torn = path.exists() and path.stat().st_size > 0 and not _ends_in_newline(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        if torn:
            os.write(self._fd, b"\n")

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event; fields must be JSON values or dataclasses of them."""
        line = orjson.dumps(
            {"kind": kind, "time_s": time.time(), **fields},
            option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS,
        )
        with self._lock:
            os.write(self._fd, line)

    def close(self) -> None:
        """Close the file; emitting afterwards is an error."""
        os.close(self._fd)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a log, skipping lines that a crash tore."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                fields = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(fields, dict) and "kind" in fields:
                yield Event(
                    kind=fields.pop("kind"), time_s=fields.pop("time_s", 0.0), fields=fields
                )


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
