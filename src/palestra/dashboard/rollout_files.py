"""Single episodes out of the compressed files of a run, found by where they lie in them."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from palestra.errors import HostError

MAX_RECORD_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 20
_MAX_FILES = 32
# Quotes inside a JSON string are escaped, so this cannot match inside of one.
_ROLLOUT_ID = re.compile(rb'"rollout_id":"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a line lies in the uncompressed contents of a file."""

    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    stamp: tuple[int, int]
    places: dict[str, Place]


class RolloutFiles:
    """Remembers where the episodes of the files used last lie; never what they hold."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, _Contents] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, path: Path) -> list[str]:
        """The ids of the rollouts in a file, in order.

        Raises:
            HostError: it cannot be read.
        """
        return list(self._places(path))

    def read(self, path: Path, rollout_id: str) -> bytes | None:
        """The record of a rollout as it was written; ``None``: the file has none of this id.

        Raises:
            HostError: the file cannot be read, or the record is too large to show.
        """
        place = self._places(path).get(rollout_id)
        if place is None:
            return None
        if place.num_bytes > MAX_RECORD_BYTES:
            raise HostError(f"{rollout_id}: its record has {place.num_bytes >> 20} MiB")
        return _read_at(path, place)

    def _places(self, path: Path) -> dict[str, Place]:
        try:
            found = path.stat()
        except OSError as error:
            raise HostError.from_os(error, doing="cannot read the rollouts") from error
        stamp = (found.st_mtime_ns, found.st_size)
        with self._lock:
            known = self._known.get(path)
            if known is not None and known.stamp == stamp:
                self._known.move_to_end(path)
                return known.places
        places = {name: place for name, place in _scan(path) if name is not None}
        with self._lock:
            self._known[path] = _Contents(stamp=stamp, places=places)
            while len(self._known) > _MAX_FILES:
                self._known.popitem(last=False)
        return places


def chunks_of(path: Path) -> Iterator[bytes]:
    """The uncompressed contents of a file, piece by piece.

    Raises:
        HostError: it cannot be read.
    """
    try:
        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        ):
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise HostError.from_os(error, doing="cannot read the rollouts") from error
    except zstandard.ZstdError as error:
        raise HostError(f"cannot read {path}: {error}") from error


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, each whole; those that are too large are passed over.

    Raises:
        HostError: it cannot be read.
    """
    pieces: list[bytes] = []
    num_bytes = 0
    for chunk in chunks_of(path):
        first, *others = chunk.split(b"\n")
        if num_bytes <= MAX_RECORD_BYTES:
            pieces.append(first)
        num_bytes += len(first)
        for piece in others:
            if num_bytes <= MAX_RECORD_BYTES:
                yield b"".join(pieces)
            pieces, num_bytes = [piece], len(piece)


def _scan(path: Path) -> Iterator[tuple[str | None, Place]]:
    """Where each line lies and whose it is, without holding a line."""
    offset = num_bytes = 0
    head = b""
    for chunk in chunks_of(path):
        first, *others = chunk.split(b"\n")
        head = _longer(head, first)
        num_bytes += len(first)
        for piece in others:
            yield _named(head), Place(offset=offset, num_bytes=num_bytes)
            offset += num_bytes + 1
            head, num_bytes = piece[:_HEAD_BYTES], len(piece)


def _longer(head: bytes, piece: bytes) -> bytes:
    room = _HEAD_BYTES - len(head)
    return head + piece[:room] if room > 0 else head


def _named(head: bytes) -> str | None:
    found = _ROLLOUT_ID.search(head)
    return found[1].decode("utf-8", "replace") if found else None


def _read_at(path: Path, place: Place) -> bytes:
    pieces: list[bytes] = []
    at = 0
    end = place.offset + place.num_bytes
    for chunk in chunks_of(path):
        begin, stop = max(place.offset - at, 0), min(end - at, len(chunk))
        if begin < stop:
            pieces.append(chunk[begin:stop])
        at += len(chunk)
        if at >= end:
            break
    return b"".join(pieces)
