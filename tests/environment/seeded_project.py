"""A root file system with a small project, whose repository is one clean commit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from leaky_repository import PROGRAMS, mark
from small_rootfs import make_rootfs

CORE = f"def double(n):\n    # {mark('core')}\n    return 2 * n  # {mark('original')}\n"
OTHER = f"def half(n):\n    return n / 2  # {mark('other')}\n"
GONE = f"# {mark('gone')}\n"
TIME_S = 1_600_000_000


def git(
    folder: Path, *arguments: str, text: str = "", env: Mapping[str, str] | None = None
) -> bytes:
    """What git prints, without anybody's settings."""
    who = {"GIT_AUTHOR_NAME": "a", "GIT_COMMITTER_NAME": "a"}
    who |= {"GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            **who,
            **(env or {}),
        },
        input=text.encode(),
        capture_output=True,
    )
    assert done.returncode == 0, f"git {arguments}: {done.stdout!r}{done.stderr!r}"
    return done.stdout


def make_project_rootfs(folder: Path) -> Path:
    """Assemble it in ``folder``; return the project's checkout in it."""
    make_rootfs(folder, more=(*PROGRAMS, "base64", "stat", "xargs"))
    top = folder / "testbed"
    (top / "readme.txt").unlink()
    files = {
        "package/__init__.py": "",
        "package/alone.py": "",
        "package/before.py": "x = 1\n",
        "package/core.py": CORE,
        "package/either.py": "y = 1\n",
        "package/further.py": "",
        "package/deep/er/gone.py": GONE,
        "other.py": OTHER,
        "run me.sh": "exit 0\n",
        ".gitignore": "__pycache__\n*.orig\n*.pyc\n",
    }
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (top / "run me.sh").chmod(0o755)
    git(top, "init", "-q", "-b", "main")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "a project")
    _leave_traces(top, folder / "srv")
    return top


def _leave_traces(top: Path, aside: Path) -> None:
    """What knows the project as it was, beside its repository and its files."""
    cache = top / "package/__pycache__"
    cache.mkdir()
    for name in ("core.cpython-311.pyc", "core.cpython-311.opt-1.pyc"):
        (cache / name).write_text(mark("original"))
    (cache / "corelated.cpython-311.pyc").write_text(mark("other"))
    (top / "package/core.py.orig").write_text(CORE)
    (top / "package/core.pyc").write_text(mark("original"))
    aside.mkdir()
    git(top, "clone", "-q", "--no-hardlinks", ".", str(aside / "clone"))
    for path in top.rglob("*"):
        os.utime(path, (TIME_S, TIME_S))
