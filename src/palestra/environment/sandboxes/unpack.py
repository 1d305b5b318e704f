"""Unpacking the tarball of a root file system, or of one layer, without trusting it.

Each path is walked component by component from the target folder's descriptor and
no symlink is ever followed, so nothing can be written outside, whatever the
tarball says. Works without privileges: everything becomes the caller's own,
devices are left out, set-user-id bits and extended attributes are dropped.

A layer also says what it takes away from the layers below, by files whose names begin
with ``.wh.``. It is translated to what an unprivileged overlay heeds: a character device
0:0 in the place of what is gone, ``user.overlay.opaque`` on a folder that hides all below.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from palestra.errors import ImageError

OPAQUE_XATTR = "user.overlay.opaque"
"""On a folder of a layer that hides all of its name below; value ``y``."""

WHITEOUT_PREFIX = ".wh."
"""Begins the name of a file that says what a layer takes away from those below."""
OPAQUE_MARK = ".wh..wh..opq"
"""The file in a folder of a layer that takes away all that is below it."""

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack_tar(tar: Path, target: Path) -> None:
    """Unpack ``tar`` (plain, gzip, bzip2 or xz) into the folder ``target``.

    Raises:
        ImageError: it is no tarball, is cut off, or tries to leave ``target``.
        OSError: the disk is full, or a file cannot be written.
    """
    with _named(str(tar)), tarfile.open(tar, "r|*") as archive:
        _unpack(archive, target, whiteouts=None)


def unpack_layer(stream: IO[bytes], target: Path, *, name: str) -> None:
    """Unpack the uncompressed tarball of one layer into the folder ``target``.

    Args:
        stream: the tarball; read up to its end mark, not further.
        target: an empty folder.
        name: of the layer, for messages.

    Raises:
        ImageError: it is no tarball, is cut off, or tries to leave ``target``.
        OSError: the disk is full, or a file cannot be written.
    """
    with _named(name), tarfile.open(fileobj=stream, mode="r|") as archive:
        _unpack(archive, target, whiteouts=[])


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"{name} is no usable tarball: {error}") from None


def _unpack(
    archive: tarfile.TarFile, target: Path, *, whiteouts: list[tuple[str, ...]] | None
) -> None:
    root_fd = os.open(target, _FOLDER_FLAGS)
    folder_modes: list[tuple[tuple[str, ...], int, float]] = []
    try:
        for member in archive:
            parts = _parts(member.name)
            if whiteouts is not None and parts and parts[-1].startswith(WHITEOUT_PREFIX):
                whiteouts.append(parts)
            elif member.isdir():
                with _open_folder(root_fd, parts):
                    pass
                folder_modes.append((parts, member.mode, member.mtime))
            elif parts:
                with _open_folder(root_fd, parts[:-1]) as parent_fd:
                    _extract(archive, member, root_fd, parent_fd, parts[-1])
        # After everything else: they are about the layers below, wherever they stand.
        for parts in whiteouts or ():
            with _open_folder(root_fd, parts[:-1]) as parent_fd:
                _white_out(parent_fd, parts[-1])
        # Last and deepest first: a folder's mode could forbid filling it, and filling
        # it changes its time.
        for parts, mode, mtime_s in reversed(folder_modes):
            with _open_folder(root_fd, parts) as fd:
                os.fchmod(fd, (mode & 0o1777) | 0o700)
                os.utime(fd, ns=_times_ns(mtime_s))
    finally:
        os.close(root_fd)


def _white_out(parent_fd: int, mark: str) -> None:
    if mark == OPAQUE_MARK:
        os.setxattr(parent_fd, OPAQUE_XATTR, b"y")
        return
    name = mark.removeprefix(WHITEOUT_PREFIX)
    if name.startswith(WHITEOUT_PREFIX):
        return  # what a storage driver kept for itself
    if name in ("", ".", ".."):
        raise ImageError(f"the tarball wants to take away {mark!r}, which is no name")
    try:
        mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent_fd)
        return
    if stat.S_ISDIR(mode):  # gone and made anew in one layer: nothing below shows through
        with _open_folder(parent_fd, (name,)) as fd:
            os.setxattr(fd, OPAQUE_XATTR, b"y")


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, root_fd: int, parent_fd: int, name: str
) -> None:
    if not (member.isreg() or member.issym() or member.islnk() or member.isfifo()):
        return
    _remove(parent_fd, name)
    if member.issym():
        os.symlink(member.linkname, name, dir_fd=parent_fd)
        os.utime(name, ns=_times_ns(member.mtime), dir_fd=parent_fd, follow_symlinks=False)
    elif member.islnk():
        _link(member, root_fd, parent_fd, name)
    elif member.isfifo():
        os.mkfifo(name, member.mode & 0o777, dir_fd=parent_fd)
    else:
        _copy(archive, member, parent_fd, name)


def _link(member: tarfile.TarInfo, root_fd: int, parent_fd: int, name: str) -> None:
    source = _parts(member.linkname)
    if not source:
        raise ImageError(f"the tarball links {member.name!r} to nothing")
    with _open_folder(root_fd, source[:-1]) as source_fd:
        try:
            os.link(
                source[-1],
                name,
                src_dir_fd=source_fd,
                dst_dir_fd=parent_fd,
                follow_symlinks=False,
            )
        except FileNotFoundError:
            raise ImageError(
                f"the tarball links {member.name!r} to {member.linkname!r}, which it does not hold"
            ) from None


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, parent_fd: int, name: str) -> None:
    source = archive.extractfile(member)
    assert source is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with source, os.fdopen(os.open(name, flags, 0o600, dir_fd=parent_fd), "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
        out.flush()
        # Root inside has no power over modes, so what its owner may not do, it may not.
        os.fchmod(out.fileno(), (member.mode & 0o777) | 0o600)
        os.utime(out.fileno(), ns=_times_ns(member.mtime))


@contextmanager
def _open_folder(root_fd: int, parts: tuple[str, ...]) -> Iterator[int]:
    """Walk to a folder without following symlinks, making what is missing."""
    fd = os.dup(root_fd)
    try:
        for part in parts:
            try:
                below = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
            except NotADirectoryError:  # a symlink looks like one too, under O_NOFOLLOW
                path = "/".join(parts)
                raise ImageError(
                    f"the tarball reaches through {part!r}, which is no folder: {path!r}"
                ) from None
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ImageError(f"the tarball wants to leave its folder: {name!r}")
    return parts


def _remove(parent_fd: int, name: str) -> None:
    """Make room for a later entry of the same name."""
    try:
        mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise ImageError(f"the tarball holds {name!r} both as a folder and as something else")
    os.unlink(name, dir_fd=parent_fd)


def _times_ns(mtime_s: float) -> tuple[int, int]:
    mtime_ns = int(mtime_s * 1_000_000_000)
    return mtime_ns, mtime_ns
