"""From the blob of a layer to a folder that an overlay can stand on."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import zstandard

from palestra.environment.sandboxes.unpack import OPAQUE_XATTR, unpack_layer
from palestra.errors import HostError, ImageError

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHUNK_BYTES = 1 << 20
_DISK_CHECK_BYTES = 32 << 20


class Stopped(Exception):
    """The unpacking was asked to stop."""


class Room:
    """Free space of a disk that must stay.

    Args:
        folder: on that disk.
        reserve_bytes: what must stay free.
    """

    def __init__(self, folder: Path, reserve_bytes: int) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes

    def check(self, needed_bytes: int, *, doing: str) -> None:
        """Refuse what would leave less than the reserve.

        Raises:
            HostError: it would.
        """
        found = os.statvfs(self._folder)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes - needed_bytes < self._reserve_bytes:
            raise HostError(
                f"{doing} needs about {_mb(needed_bytes)} in {self._folder}, where "
                f"{_mb(free_bytes)} are free and {_mb(self._reserve_bytes)} are kept in reserve",
                hint="free some space (palestra images prune) or choose another folder",
            )


class _Reader(io.RawIOBase):
    """Passes a stream on and takes its digest; looks after the disk and for a stop."""

    def __init__(self, source: IO[bytes], stop: threading.Event, room: Room | None) -> None:
        self._source = source
        self._stop = stop
        self._room = room
        self._digest = hashlib.sha256()
        self._unchecked_bytes = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer))
        if self._stop.is_set():
            raise Stopped
        self._digest.update(data)
        self._unchecked_bytes += len(data)
        if self._room is not None and self._unchecked_bytes >= _DISK_CHECK_BYTES:
            self._unchecked_bytes = 0
            self._room.check(_DISK_CHECK_BYTES, doing="unpacking a layer")
        buffer[: len(data)] = data
        return len(data)

    def drain(self) -> None:
        while self.read(_CHUNK_BYTES):
            pass


def unpack_blob(
    blob: Path, target: Path, *, digest: str, diff_id: str, stop: threading.Event, room: Room
) -> None:
    """Unpack a layer's blob (plain, gzip or zstd) into the empty folder ``target``.

    Args:
        blob: the file.
        target: the folder.
        digest: what the file must hash to.
        diff_id: what it must hash to once it is uncompressed.
        stop: set from another thread to give up.
        room: the disk of ``target``.

    Raises:
        ImageError: it is broken, is not what its digests say, or tries to escape.
        HostError: the disk has no room left.
        OSError: a file cannot be written.
        Stopped: ``stop`` was set.
    """
    name = f"the layer {digest[:19]}"
    with blob.open("rb") as file:
        packed = _Reader(file, stop, None)
        plain = _Reader(_uncompressed(cast("IO[bytes]", io.BufferedReader(packed))), stop, room)
        try:
            unpack_layer(
                cast("IO[bytes]", io.BufferedReader(plain, _CHUNK_BYTES)), target, name=name
            )
            plain.drain()
            packed.drain()
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise ImageError(f"{name} is broken: {error}") from None
    if packed.digest != digest or plain.digest != diff_id:
        raise ImageError(f"{name} is broken: it does not hash to what the image says")


def _uncompressed(file: IO[bytes]) -> IO[bytes]:
    start = cast("io.BufferedReader", file).peek(4)[:4]
    if start.startswith(_GZIP_MAGIC):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if start == _ZSTD_MAGIC:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return cast("IO[bytes]", reader)
    return file


def merge_layers(layers: tuple[Path, ...], target: Path) -> None:
    """Lay ``layers``, the bottommost first, over each other into the empty folder ``target``.

    Files are links to those of the layers and take no room. Nothing is below the result,
    so it holds no whiteouts.

    Raises:
        OSError: a file cannot be linked.
    """
    for layer in layers:
        _merge(layer, target)


def _merge(source: Path, target: Path) -> None:
    if is_opaque(source):
        for entry in list(target.iterdir()):
            _remove(entry)
    for found in os.scandir(source):
        below = target / found.name
        if found.is_dir(follow_symlinks=False):
            if below.is_symlink() or not below.is_dir():
                _remove(below)
                below.mkdir()
            _merge(Path(found.path), below)
            continue
        _remove(below)
        if not is_whiteout(found.stat(follow_symlinks=False)):
            os.link(found.path, below, follow_symlinks=False)
    state = source.stat()
    target.chmod(stat.S_IMODE(state.st_mode))
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


def is_whiteout(found: os.stat_result) -> bool:
    """Whether a file of a layer says that what is below is gone."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(folder: Path) -> bool:
    """Whether a folder of a layer hides all that is below it."""
    with suppress(OSError):
        return os.getxattr(folder, OPAQUE_XATTR) == b"y"
    return False


def num_bytes_below(folder: Path) -> int:
    """What the files of a layer take on the disk, in bytes."""
    total = 0
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            total += num_bytes_below(Path(entry.path))
        else:
            total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
