"""The tarball of a layer of the store, as engines take it.

What an overlay keeps as character devices 0:0 and as an attribute on folders becomes the
``.wh.`` files that stand for it in images. The same layer always gives the same bytes.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from palestra.environment.images.layers import is_opaque, is_whiteout
from palestra.environment.sandboxes.unpack import OPAQUE_MARK, WHITEOUT_PREFIX
from palestra.errors import ImageError

_CHUNK_BYTES = 1 << 20
_END = b"\0" * (2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who files of the store's owner belong to inside; in a sandbox, that is its user."""

    uid: int
    gid: int


def layer_tar(layer: Path, owner: Owner) -> Iterator[bytes]:
    """The tarball of the folder ``layer``, in pieces.

    Devices and sockets are left out, and so is what is mounted below.

    Raises:
        ImageError: a file has a name that an image cannot have, or changes meanwhile.
        OSError: a file cannot be read.
    """
    yield from _Walk(layer, owner).pieces()
    yield _END


class _Walk:
    def __init__(self, layer: Path, owner: Owner) -> None:
        self._layer = layer
        self._owner = owner
        self._device = layer.stat().st_dev
        self._linked: dict[int, str] = {}

    def pieces(self, folder: str = "") -> Iterator[bytes]:
        """What is in a folder; its path ends with a slash."""
        path = self._layer / folder
        if folder:
            yield self._header(folder, path.stat(), tarfile.DIRTYPE)
        if is_opaque(path):
            yield self._mark(folder, OPAQUE_MARK, path.stat())
        for entry in sorted(os.scandir(path), key=lambda entry: os.fsencode(entry.name)):
            if entry.name.startswith(WHITEOUT_PREFIX):
                raise ImageError(f"{entry.path} has a name that means something else in an image")
            found = entry.stat(follow_symlinks=False)
            name = folder + entry.name
            if stat.S_ISDIR(found.st_mode):
                if found.st_dev == self._device:
                    yield from self.pieces(f"{name}/")
            elif is_whiteout(found):
                yield self._mark(folder, WHITEOUT_PREFIX + entry.name, found)
            else:
                yield from self._file(name, found)

    def _file(self, name: str, found: os.stat_result) -> Iterator[bytes]:
        path = self._layer / name
        if stat.S_ISLNK(found.st_mode):
            yield self._header(name, found, tarfile.SYMTYPE, str(path.readlink()))
        elif stat.S_ISFIFO(found.st_mode):
            yield self._header(name, found, tarfile.FIFOTYPE)
        elif stat.S_ISREG(found.st_mode):
            first = self._linked.setdefault(found.st_ino, name)
            if first != name:
                yield self._header(name, found, tarfile.LNKTYPE, first)
                return
            yield self._header(name, found, tarfile.REGTYPE)
            yield from _content(path, found.st_size)

    def _mark(self, folder: str, name: str, found: os.stat_result) -> bytes:
        return self._header(folder + name, found, tarfile.REGTYPE, is_empty=True)

    def _header(
        self,
        name: str,
        found: os.stat_result,
        kind: bytes,
        target: str = "",
        *,
        is_empty: bool = False,
    ) -> bytes:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.linkname = target
        info.mode = 0o644 if is_empty else stat.S_IMODE(found.st_mode)
        info.mtime = max(0, int(found.st_mtime))
        info.size = found.st_size if kind == tarfile.REGTYPE and not is_empty else 0
        mine = os.geteuid()
        info.uid = self._owner.uid if found.st_uid == mine else found.st_uid
        info.gid = self._owner.gid if found.st_uid == mine else found.st_gid
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _content(path: Path, num_bytes: int) -> Iterator[bytes]:
    left = num_bytes
    with path.open("rb", buffering=0) as file:
        while left and (data := file.read(min(left, _CHUNK_BYTES))):
            left -= len(data)
            yield data
    if left:
        raise ImageError(f"{path} became shorter while it was read")
    yield b"\0" * (-num_bytes % tarfile.BLOCKSIZE)
