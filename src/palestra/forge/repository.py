"""What a project's repository would be with other files, told without touching it.

Trees are written into a folder of their own, which borrows the objects of the project's
repository and goes with the question.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from palestra.environment.sandboxes.repository import root_commit_of
from palestra.errors import HostError, TaskError
from palestra.tasks.patches import is_plain_path

_PLAIN = "100644"
_FILES = (_PLAIN, "100755")
_NOTHING = "0" * 40
_TIMEOUT_S = 60.0
_TAIL_CHARS = 300
_DIFF = (
    *("diff-tree", "-p", "-r", "--no-renames", "--unified=3", "--text", "--no-color"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--no-ext-diff", "--no-textconv", "--full-index"),
    *("--diff-algorithm=myers", "--indent-heuristic"),
)


def commit_after(checkout: Path, changes: Mapping[str, bytes | None]) -> str:
    """The id of the commit without parents that ``checkout`` makes with ``changes``.

    Its author, date and message are those of a task's repository.

    Args:
        checkout: a git repository with everything committed.
        changes: new content by path relative to it; ``None``: the file is gone.

    Raises:
        TaskError: a path is none of a plain file in the repository, or git would convert it.
        HostError: git fails.
    """
    with _scratch(checkout) as scratch:
        return root_commit_of(scratch.tree(changes))


def diff_of(checkout: Path, changes: Mapping[str, bytes | None]) -> str:
    """The git diff from ``checkout`` to what it is with ``changes``.

    Raises:
        TaskError: as :func:`commit_after`, or a changed file is no text in UTF-8.
        HostError: git fails.
    """
    return diff_between(checkout, {}, changes)


def diff_between(
    checkout: Path, before: Mapping[str, bytes | None], after: Mapping[str, bytes | None]
) -> str:
    """The git diff from ``checkout`` with one set of changes to ``checkout`` with another.

    Raises:
        TaskError: as :func:`diff_of`.
        HostError: git fails.
    """
    with _scratch(checkout) as scratch:
        patch = scratch.git(*_DIFF, scratch.tree(before), scratch.tree(after))
    if b"\0" in patch:
        raise TaskError(f"{checkout.name}: a changed file is binary")
    try:
        return patch.decode()
    except UnicodeDecodeError:
        raise TaskError(f"{checkout.name}: a changed file is not UTF-8") from None


@contextmanager
def _scratch(checkout: Path) -> Iterator[_Scratch]:
    try:
        with tempfile.TemporaryDirectory(prefix="palestra-tree-") as folder:
            yield _Scratch(checkout, Path(folder))
    except OSError as error:
        raise HostError.from_os(error, doing="cannot write trees of a project") from error


class _Scratch:
    """An index and a store of objects over those of a checkout."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._checkout = checkout
        self._objects = folder / "objects"
        self._objects.mkdir()
        self._index = folder / "index"
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": "/nonexistent",
            "LC_ALL": "C",
            "GIT_DIR": str(checkout / ".git"),
            "GIT_WORK_TREE": str(checkout),
            "GIT_INDEX_FILE": str(self._index),
            "GIT_OBJECT_DIRECTORY": str(self._objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(checkout / ".git/objects"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
        }

    def tree(self, changes: Mapping[str, bytes | None]) -> str:
        """The id of the tree of the checkout with ``changes``."""
        if not changes:
            return self.git("rev-parse", "HEAD^{tree}").decode().strip()
        unfit = next((path for path in changes if not is_plain_path(path)), None)
        if unfit is not None:
            raise TaskError(f"{self._checkout.name}: {unfit!r} is no path in the repository")
        self.git("read-tree", "HEAD")
        known = self._entries(sorted(changes))
        lines = [self._line(path, known.get(path), data) for path, data in changes.items()]
        self.git("update-index", "-z", "--index-info", text=b"".join(lines))
        return self.git("write-tree").decode().strip()

    def git(self, *arguments: str, text: bytes = b"") -> bytes:
        """What git prints.

        Raises:
            HostError: it fails or takes too long.
        """
        try:
            done = subprocess.run(
                ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments],
                cwd=self._checkout,
                env=self._env,
                input=text,
                capture_output=True,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"git in {self._checkout} takes too long: {error}") from None
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip()[-_TAIL_CHARS:]
            raise HostError(f"git {arguments[0]} in {self._checkout}: {said}")
        return done.stdout

    def _entries(self, paths: list[str]) -> dict[str, tuple[str, str]]:
        """Mode and blob of the files among ``paths`` that the index has."""
        listed = self.git("--literal-pathspecs", "ls-files", "-s", "-z", "--", *paths)
        found = {}
        for line in listed.split(b"\0")[:-1]:
            fixed, _, path = line.partition(b"\t")
            mode, blob, _ = fixed.decode().split(" ")
            found[os.fsdecode(path)] = (mode, blob)
        return found

    def _line(self, path: str, known: tuple[str, str] | None, data: bytes | None) -> bytes:
        """What git's index is to be told of a change."""
        if known is not None:
            self._check(path, *known)
        if data is None:
            return f"0 {_NOTHING}\t{path}\0".encode()
        mode = _PLAIN if known is None else known[0]
        return f"{mode} {self._blob(data)}\t{path}\0".encode()

    def _check(self, path: str, mode: str, blob: str) -> None:
        """Raise unless a file is to git what it is to whoever reads it."""
        file = self._checkout / path
        if mode not in _FILES or not file.is_file():
            raise TaskError(f"{self._checkout.name}: {path} is no plain file")
        if _name(_content(file.read_bytes())) != blob:
            raise TaskError(f"{self._checkout.name}: {path} is not as git keeps it")

    def _blob(self, data: bytes) -> str:
        """The id of a blob, which is now there."""
        content = _content(data)
        name = _name(content)
        path = self._objects / name[:2] / name[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(content, 1))
        return name


def _content(data: bytes) -> bytes:
    return b"blob %d\0%s" % (len(data), data)


def _name(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
