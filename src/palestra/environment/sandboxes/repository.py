"""A git repository with one commit, written without git.

Starting git three times costs more than the rest of a sandbox. Author, date and
message are fixed, so equal files always give the same commit id.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    path: bytes
    mode: int
    size_bytes: int
    sha1: bytes


def write_repository(folder: Path, files: Sequence[TaskFile]) -> str:
    """Lay ``files`` into ``folder`` as a clean checkout of one commit; return its id.

    Raises:
        ValueError: two files cannot both exist (equal paths, or one below the other).
    """
    git = folder / ".git"
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags", "info"):
        (git / name).mkdir(parents=True)
    entries = sorted((_write_file(folder, git, file) for file in files), key=lambda e: e.path)
    tree = _write_tree(git, entries, b"")
    commit = _write_object(
        git,
        b"commit",
        f"tree {tree.hex()}\nauthor {_IDENTITY}\ncommitter {_IDENTITY}\n\n{_MESSAGE}".encode(),
    ).hex()
    (git / "config").write_text(_CONFIG)
    (git / "description").write_text("A task.\n")
    (git / "HEAD").write_text(f"ref: refs/heads/{_BRANCH}\n")
    (git / "refs" / "heads" / _BRANCH).write_text(f"{commit}\n")
    (git / "index").write_bytes(_index(entries))
    return commit


def _write_file(folder: Path, git: Path, file: TaskFile) -> _Entry:
    path = folder / file.path
    data = file.text.encode("utf-8", "surrogatepass")
    mode = _EXECUTABLE_MODE if file.executable else _FILE_MODE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            out.write(data)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"the path {file.path!r} is taken by another file") from None
    path.chmod(mode & 0o777)
    os.utime(path, (COMMIT_TIME_S, COMMIT_TIME_S))
    return _Entry(
        path=os.fsencode(path.relative_to(folder)),
        mode=mode,
        size_bytes=len(data),
        sha1=_write_object(git, b"blob", data),
    )


def _write_tree(git: Path, entries: Sequence[_Entry], prefix: bytes) -> bytes:
    """Write the tree of the entries below ``prefix`` (and its subtrees); return its id."""
    items: list[tuple[bytes, int, bytes]] = []  # name, mode, id
    subtrees: dict[bytes, list[_Entry]] = {}
    for entry in entries:
        name, slash, _ = entry.path[len(prefix) :].partition(b"/")
        if slash:
            subtrees.setdefault(name, []).append(entry)
        else:
            items.append((name, entry.mode, entry.sha1))
    for name, below in subtrees.items():
        items.append((name, _TREE_MODE, _write_tree(git, below, prefix + name + b"/")))
    # git sorts a subtree as if its name ended in a slash
    items.sort(key=lambda item: item[0] + (b"/" if item[1] == _TREE_MODE else b""))
    body = b"".join(b"%o %s\0%s" % (mode, name, sha1) for name, mode, sha1 in items)
    return _write_object(git, b"tree", body)


def _write_object(git: Path, kind: bytes, body: bytes) -> bytes:
    content = b"%s %d\0%s" % (kind, len(body), body)
    sha1 = hashlib.sha1(content, usedforsecurity=False)
    name = sha1.hexdigest()
    path = git / "objects" / name[:2] / name[2:]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(content, 1))
        path.chmod(0o444)
    return sha1.digest()


def _index(entries: Sequence[_Entry]) -> bytes:
    """The index file, version 2, with the stat data that the files have in any sandbox."""
    out = [b"DIRC", struct.pack(">II", 2, len(entries))]
    for entry in entries:
        stat = (COMMIT_TIME_S, 0, COMMIT_TIME_S, 0, 0, 0, entry.mode, 0, 0, entry.size_bytes)
        fixed = struct.pack(">10I", *(value & 0xFFFFFFFF for value in stat))
        record = fixed + entry.sha1 + struct.pack(">H", min(len(entry.path), 0xFFF)) + entry.path
        out.append(record + b"\0" * (8 - len(record) % 8))
    content = b"".join(out)
    return content + hashlib.sha1(content, usedforsecurity=False).digest()
