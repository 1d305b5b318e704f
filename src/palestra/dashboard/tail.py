"""Reads a growing file of one JSON object per line, a piece at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

_CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 20
"""A longer line is passed over: no event of ours comes near it."""


class JsonLinesTail:
    """Remembers how far a file was read; keeps no contents.

    A last line without its end is left for the next time, since somebody may be
    writing it. A line that is no JSON object (torn by a crash) is passed over.

    Args:
        path: of the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None

    def was_replaced(self) -> bool:
        """Whether the file is another one than before or lost something: begin anew."""
        try:
            found = self._path.stat()
        except OSError:
            return self._offset > 0
        return self._offset > 0 and (found.st_ino != self._inode or found.st_size < self._offset)

    def restart(self) -> None:
        """Read from the beginning the next time."""
        self._offset = 0
        self._inode = None

    def read_new(self) -> Iterator[dict[str, Any]]:
        """Yield what was appended since the last time; nothing where there is no file."""
        try:
            file = self._path.open("rb")
        except OSError:
            return
        with file:
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset)
            rest = b""
            skipping = False
            while chunk := file.read(_CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._offset += len(line) + 1
                    found = None if skipping else _object(line)
                    skipping = False
                    if found is not None:
                        yield found
                if len(rest) > MAX_LINE_BYTES:
                    self._offset += len(rest)
                    rest, skipping = b"", True


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
