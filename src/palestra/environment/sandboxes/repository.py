"""A git repository with one commit, written without git.

Starting git three times costs more than the rest of a sandbox. Author, date and
message are fixed, so equal files always give the same commit id. The objects lie in a
pack, because making a file on a disk can cost more than all that is written to it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from palestra.records import TaskFile

COMMIT_TIME_S = 1_600_000_000
"""Author and committer date (Unix seconds), and modification time of every file."""
_IDENTITY = f"palestra <palestra@localhost> {COMMIT_TIME_S} +0000"
_MESSAGE = "Initial commit\n"
_FILE_MODE = 0o100644
_EXECUTABLE_MODE = 0o100755
_TREE_MODE = 0o40000
# git trusts size and whole-second modification time alone: inode, owner and change
# time look different through an overlay, and git would read every file again.
_CONFIG = (
    "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n"
    "\tlogallrefupdates = true\n\tcheckStat = minimal\n\ttrustctime = false\n"
)
_BRANCH = "main"
_PACK_KINDS = {b"commit": 1, b"tree": 2, b"blob": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    path: bytes
    mode: int
    size_bytes: int
    sha1: bytes


def commit_of(files: Sequence[TaskFile]) -> str:
    """The id of the commit that :func:`write_repository` makes of ``files``."""
    return _Objects(files).commit


def root_commit_of(tree: str) -> str:
    """The id of the commit of ``tree`` that has no parents, made as those of files are."""
    body = _root_commit(tree)
    return _sha1(b"commit %d\0%s" % (len(body), body)).hex()


def write_repository(folder: Path, files: Sequence[TaskFile]) -> str:
    """Lay ``files`` into ``folder`` as a clean checkout of one commit; return its id.

    Raises:
        ValueError: two files cannot both exist (equal paths, or one below the other).
    """
    git = folder / ".git"
    for name in ("objects/pack", "refs"):
        (git / name).mkdir(parents=True)
    for file in files:
        _write_file(folder, file)
    objects = _Objects(files)
    _write_pack(git / "objects/pack", objects.contents)
    (git / "config").write_text(_CONFIG)
    (git / "HEAD").write_text(f"ref: refs/heads/{_BRANCH}\n")
    (git / "packed-refs").write_text(f"{objects.commit} refs/heads/{_BRANCH}\n")
    (git / "index").write_bytes(_index(objects.entries))
    return objects.commit


class _Objects:
    """The blobs, trees and the commit of some files, by id."""

    def __init__(self, files: Sequence[TaskFile]) -> None:
        self.contents: dict[str, bytes] = {}
        self.entries = sorted(map(self._entry, files), key=lambda entry: entry.path)
        tree = self._tree(self.entries, b"").hex()
        self.commit = self._object(b"commit", _root_commit(tree)).hex()

    def _entry(self, file: TaskFile) -> _Entry:
        data = _data(file)
        return _Entry(
            path=os.fsencode(PurePosixPath(file.path)),
            mode=_mode(file),
            size_bytes=len(data),
            sha1=self._object(b"blob", data),
        )

    def _tree(self, entries: Sequence[_Entry], prefix: bytes) -> bytes:
        """Make the tree of the entries below ``prefix`` (and its subtrees); return its id."""
        items: list[tuple[bytes, int, bytes]] = []  # name, mode, id
        subtrees: dict[bytes, list[_Entry]] = {}
        for entry in entries:
            name, slash, _ = entry.path[len(prefix) :].partition(b"/")
            if slash:
                subtrees.setdefault(name, []).append(entry)
            else:
                items.append((name, entry.mode, entry.sha1))
        for name, below in subtrees.items():
            items.append((name, _TREE_MODE, self._tree(below, prefix + name + b"/")))
        # git sorts a subtree as if its name ended in a slash
        items.sort(key=lambda item: item[0] + (b"/" if item[1] == _TREE_MODE else b""))
        body = b"".join(b"%o %s\0%s" % (mode, name, sha1) for name, mode, sha1 in items)
        return self._object(b"tree", body)

    def _object(self, kind: bytes, body: bytes) -> bytes:
        content = b"%s %d\0%s" % (kind, len(body), body)
        sha1 = _sha1(content)
        self.contents[sha1.hex()] = content
        return sha1


def _root_commit(tree: str) -> bytes:
    return f"tree {tree}\nauthor {_IDENTITY}\ncommitter {_IDENTITY}\n\n{_MESSAGE}".encode()


def _data(file: TaskFile) -> bytes:
    return file.text.encode("utf-8", "surrogatepass")


def _mode(file: TaskFile) -> int:
    return _EXECUTABLE_MODE if file.executable else _FILE_MODE


def _write_file(folder: Path, file: TaskFile) -> None:
    path = folder / file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            out.write(_data(file))
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"the path {file.path!r} is taken by another file") from None
    path.chmod(_mode(file) & 0o777)
    os.utime(path, (COMMIT_TIME_S, COMMIT_TIME_S))


def _write_pack(folder: Path, contents: dict[str, bytes]) -> None:
    """Write the objects as one pack, version 2, and its index: two files instead of many."""
    pack = bytearray(b"PACK" + struct.pack(">II", 2, len(contents)))
    rows = []  # id, checksum, offset
    for name, content in contents.items():
        offset = len(pack)
        header, _, body = content.partition(b"\0")
        pack += _pack_header(_PACK_KINDS[header.split()[0]], len(body)) + zlib.compress(body, 1)
        rows.append((bytes.fromhex(name), zlib.crc32(pack[offset:]), offset))
    pack += _sha1(pack)
    rows.sort()
    index = bytearray(b"\377tOc" + struct.pack(">I", 2))
    for first in range(256):
        index += struct.pack(">I", sum(sha1[0] <= first for sha1, _, _ in rows))
    index += b"".join(sha1 for sha1, _, _ in rows)
    index += b"".join(struct.pack(">I", checksum) for _, checksum, _ in rows)
    index += b"".join(struct.pack(">I", offset) for _, _, offset in rows)
    index += pack[-20:]
    index += _sha1(index)
    stem = f"pack-{pack[-20:].hex()}"
    for name, data in ((f"{stem}.pack", pack), (f"{stem}.idx", index)):
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o444)


def _pack_header(kind: int, size_bytes: int) -> bytes:
    """Kind and size of an object: four bits of the size, then seven a byte, low ones first."""
    octet, rest = kind << 4 | size_bytes & 0xF, size_bytes >> 4
    header = bytearray()
    while rest:
        header.append(octet | 0x80)
        octet, rest = rest & 0x7F, rest >> 7
    return bytes([*header, octet])


def _sha1(data: bytes | bytearray) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()


def _index(entries: Sequence[_Entry]) -> bytes:
    """The index file, version 2, with the stat data that the files have in any sandbox."""
    out = [b"DIRC", struct.pack(">II", 2, len(entries))]
    for entry in entries:
        stat = (COMMIT_TIME_S, 0, COMMIT_TIME_S, 0, 0, 0, entry.mode, 0, 0, entry.size_bytes)
        fixed = struct.pack(">10I", *(value & 0xFFFFFFFF for value in stat))
        record = fixed + entry.sha1 + struct.pack(">H", min(len(entry.path), 0xFFF)) + entry.path
        out.append(record + b"\0" * (8 - len(record) % 8))
    content = b"".join(out)
    return content + _sha1(content)
