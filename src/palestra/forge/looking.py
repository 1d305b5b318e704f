"""Looks for lines of text in the files of a machine; is also sent into sandboxes.

Only Python's own modules are used here, and nothing of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 32_000_000
_NOT_FILES = ("/proc", "/sys", "/dev")
_ARCHIVES = (".whl", ".egg", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".patch", ".diff")


def look(sought: Mapping[str, Any], files: Iterable[tuple[str, bytes]]) -> list[str]:
    """Say where the original lines stand.

    Args:
        sought: ``workdir`` of the repository; ``lines``: path of a module in it → its lines;
            ``packages``: names of the library; ``statement``.
        files: path → contents; a path that is not absolute is in the repository.
    """
    workdir = sought["workdir"].rstrip("/") + "/"
    lines = {path: [line.encode() for line in of] for path, of in sought["lines"].items()}
    common: set[tuple[str, bytes]] = set()
    found: list[tuple[str, bytes | None, str]] = []
    for given, data in files:
        path = given if given.startswith("/") else workdir + given
        own = path[len(workdir) :] if path.startswith(workdir) else None
        if own is not None and own in lines:
            common |= {(own, line) for line in _held(lines[own], data)}
            continue
        found += [(m, line, path) for m, wanted in lines.items() for line in _held(wanted, data)]
        stale = ((module, _stale(path, module)) for module in lines)
        found += [(module, None, f"{path}: {what} of {module}") for module, what in stale if what]
        if _is_archive(path, sought["packages"]):
            found.append(("", None, f"{path}: an archive that may hold the library"))
    findings = [
        where if line is None else _told(where, line, module, workdir)
        for module, line, where in found
        if (module, line) not in common
    ]
    dense = "".join(sought["statement"].split())
    findings += [
        f"statement: holds the line {line.decode()!r} of {module}"
        for module, wanted in lines.items()
        for line in wanted
        if (module, line) not in common and "".join(line.decode().split()) in dense
    ]
    return list(dict.fromkeys(findings))


def files_here(workdir: str, roots: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """All files below some folders of this machine, and all objects of the repository."""
    for folder, folders, names in (step for root in roots for step in os.walk(root)):
        folders[:] = [name for name in folders if str(Path(folder, name)) not in _NOT_FILES]
        for name in names:
            path = Path(folder, name)
            try:
                if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
                    continue
                data = path.read_bytes()
            except OSError:
                continue
            yield str(path), data
    yield from _objects(workdir)


def main(sought: Mapping[str, Any]) -> None:
    """Look below ``roots`` on this machine; print what is found, and in how many files."""
    count = 0

    def counted() -> Iterator[tuple[str, bytes]]:
        nonlocal count
        for item in files_here(sought["workdir"], sought["roots"]):
            count += 1
            yield item

    findings = look(sought, counted())
    print(json.dumps({"findings": findings, "num_files": count}))  # noqa: T201


def _told(path: str, line: bytes, module: str, workdir: str) -> str:
    is_own = path.startswith(workdir) and not path.startswith(workdir + ".git/")
    kind = "duplicate: " if is_own else ""
    return f"{kind}{path}: holds the line {line.decode()!r} of {module}"


def _held(lines: Sequence[bytes], data: bytes) -> list[bytes]:
    """The lines that stand in a text, each a whole line of it but for blanks around it."""
    likely = [line for line in lines if line in data]
    if not likely:
        return []
    there = {line.strip() for line in data.splitlines()}
    return [line for line in likely if line in there]


def _stale(path: str, module: str) -> str | None:
    """What a file is to a module, by its path: its bytecode or a copy of it."""
    folder, _, name = module.rpartition("/")
    package = folder.rpartition("/")[2]
    parent, _, base = path.rpartition("/")
    if base.endswith((".pyc", ".pyo")):
        parent = parent[: -len("/__pycache__")] if parent.endswith("/__pycache__") else parent
        same = base.split(".")[0] == name[: -len(".py")]
        return "bytecode" if same and _ends_in(parent, package) else None
    if base == name and _ends_in(parent, package):
        installed = any(p in parent for p in ("/site-packages", "/dist-packages", "/build/lib"))
        return "an installed copy" if installed else None
    return None


def _ends_in(folder: str, package: str) -> bool:
    return package in ("", "src", "lib") or folder.rpartition("/")[2] == package


def _is_archive(path: str, packages: Sequence[str]) -> bool:
    name = path.rpartition("/")[2].lower().replace("-", "_")
    return name.endswith(_ARCHIVES) and any(name.startswith(p.lower()) for p in packages)


def _objects(workdir: str) -> Iterator[tuple[str, bytes]]:
    """What the repository's history holds, reachable or not, but the commit at its head."""
    git = ["git", "-C", workdir, "-c", "safe.directory=*"]
    try:
        names = _run([*git, "cat-file", "--batch-all-objects", "--batch-check"]).split(b"\n")
        tree = _run([*git, "ls-tree", "-r", "HEAD"]).split(b"\n")
    except (OSError, subprocess.SubprocessError):
        return
    blobs = [line.split()[0].decode() for line in names if line.split()[1:2] == [b"blob"]]
    at_head = {line.split()[2].decode() for line in tree if len(line.split()) > 2}
    for blob in blobs:
        if blob not in at_head:
            yield f"{workdir}/.git/objects/{blob}", _run([*git, "cat-file", "blob", blob])


def _run(command: Sequence[str]) -> bytes:
    return subprocess.run(command, stdout=subprocess.PIPE, timeout=300, check=True).stdout
