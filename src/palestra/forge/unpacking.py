"""Source archives of strangers, unpacked by a process of their own that has narrow limits.

A small archive can ask for any amount of memory, disk and time before its reader gets to look
at what it holds: one header of a tarball may be a gigabyte.
"""

from __future__ import annotations

import errno
import posixpath
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from palestra.errors import HostError, TaskError

MAX_SOURCE_BYTES = 256 << 20
MAX_SOURCE_FILES = 20_000
_MEMORY_BYTES = 768 << 20
_CPU_S = 120
_TIMEOUT_S = 600.0
_REFUSED, _NO_DISK = 3, 4
# The machine's fault; whatever else the disk says comes from the names and sizes in the archive.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES})
_TAIL_CHARS = 200


def unpack(packed: Path, tree: Path) -> None:
    """Unpack a ``.zip`` or a tarball, whose files are then below ``tree``, or nothing is.

    Raises:
        TaskError: it is broken, too large, or wants out of its folder.
        HostError: the disk cannot be written.
    """
    part = tree.with_name(f"{tree.name}.part")
    # -P: the working folder may hold modules of anybody.
    command = [sys.executable, "-P", "-m", __name__, str(packed.absolute()), str(part.absolute())]
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode == 0:
            part.rename(tree)
            return
    except subprocess.TimeoutExpired:
        raise TaskError(f"{packed.name} is not unpacked after {_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot unpack {packed.name}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    kind = HostError if done.returncode == _NO_DISK else TaskError
    raise kind(f"{packed.name} cannot be unpacked: {lines[-1][-_TAIL_CHARS:]}")


# --- in the process of its own ------------------------------------------------


def main(packed: Path, folder: Path) -> int:
    """Unpack under limits; what is wrong goes to standard error, in one line.

    Returns:
        What the process exits with.
    """
    for kind, limit in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, MAX_SOURCE_BYTES),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    try:
        if packed.suffix == ".zip":
            _unzip(packed, folder)
        else:
            _untar(packed, folder)
    except OSError as error:
        _tell(error)
        return _NO_DISK if error.errno in _DISK_ERRORS else _REFUSED
    except MemoryError:
        sys.stderr.write(f"it takes more than {_MEMORY_BYTES >> 20} MiB of memory\n")
        return _REFUSED
    except Exception as error:  # readers of archives raise anything on a broken one
        _tell(error)
        return _REFUSED
    return 0


def _tell(error: Exception) -> None:
    said = " ".join(str(error).split())
    sys.stderr.write(f"{said or type(error).__name__}\n")


def _untar(packed: Path, folder: Path) -> None:
    with tarfile.open(packed) as archive:
        members: list[tarfile.TarInfo] = []
        num_bytes = 0
        for member in archive:  # read one by one: a small archive can unpack to a disk full
            members.append(member)
            num_bytes += member.size
            _check_size(len(members), num_bytes)
        _check_links(members)
        # The filter refuses what leaves the folder, devices and odd modes.
        archive.extractall(folder, members, filter="data")


def _check_links(members: Sequence[tarfile.TarInfo]) -> None:
    """Refuse what would be written or linked through a link, wherever that leads."""
    links = {_normal(member.name) for member in members if member.issym()}
    for member in members:
        for path in (member.name, *([member.linkname] if member.islnk() else [])):
            normal = _normal(path)
            above = (normal[:end] for end, c in enumerate(normal) if c == "/")
            if (member.islnk() and normal in links) or any(folder in links for folder in above):
                raise tarfile.TarError(f"{member.name!r} goes through a link")


def _normal(path: str) -> str:
    return posixpath.normpath(path.lstrip("/"))


def _unzip(packed: Path, folder: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        infos = archive.infolist()
        _check_size(len(infos), sum(info.file_size for info in infos))
        archive.extractall(folder)  # drops leading slashes and ..


def _check_size(num_files: int, num_bytes: int) -> None:
    if num_files > MAX_SOURCE_FILES or num_bytes > MAX_SOURCE_BYTES:
        raise ValueError(
            f"it unpacks to more than {MAX_SOURCE_FILES} files or {MAX_SOURCE_BYTES >> 20} MiB"
        )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
