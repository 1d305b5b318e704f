"""The repository that a project's tasks begin with: its source as one commit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from palestra.environment.sandboxes.repository import COMMIT_TIME_S
from palestra.forge.commands import output

BRANCH = "main"
_ENV = {
    "GIT_AUTHOR_NAME": "palestra",
    "GIT_AUTHOR_EMAIL": "palestra@localhost",
    "GIT_COMMITTER_NAME": "palestra",
    "GIT_COMMITTER_EMAIL": "palestra@localhost",
    "GIT_AUTHOR_DATE": f"{COMMIT_TIME_S} +0000",
    "GIT_COMMITTER_DATE": f"{COMMIT_TIME_S} +0000",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}
# The index stays good in a sandbox, where inodes, owners and change times look different.
_SETTINGS = {"core.checkStat": "minimal", "core.trustctime": "false", "core.autocrlf": "false"}
# Settings of git, not of the project; what builds leave; and what is not text of anybody.
_LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".gitattributes", ".gitmodules", "__pycache__", "*.pyc", "*.egg-info", "PKG-INFO"),
    *(".eggs", ".tox", ".venv", "*.so", "*.orig", "*.rej"),
)
# Further down, these are packages like any other.
_LEFT_OUT_AT_TOP = frozenset({"build", "dist"})


def check_out(tree: Path, checkout: Path) -> str:
    """Copy a source and make it a repository of one commit; return the commit's id.

    Raises:
        HostError: git fails.
        OSError: a file cannot be read or written.
    """

    def left_out(folder: str, names: list[str]) -> Collection[str]:
        at_top = _LEFT_OUT_AT_TOP if Path(folder) == tree else frozenset()
        return _LEFT_OUT(folder, names) | (at_top & set(names))

    shutil.rmtree(checkout, ignore_errors=True)
    shutil.copytree(tree, checkout, symlinks=True, ignore=left_out)
    for path in sorted(checkout.rglob("*")):
        if path.is_symlink():
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
        if path.is_file():
            os.utime(path, (COMMIT_TIME_S, COMMIT_TIME_S))
    _git(checkout, "init", "-q", "-b", BRANCH, "--template=")
    for setting, value in _SETTINGS.items():
        _git(checkout, "config", setting, value)
    _git(checkout, "add", "-A", "-f")
    _git(checkout, "commit", "-q", "--no-verify", "--allow-empty", "-m", "Initial commit")
    return _git(checkout, "rev-parse", "HEAD").strip()


def _git(checkout: Path, *arguments: str) -> str:
    return output(["git", "-C", str(checkout), "-c", "safe.directory=*", *arguments], env=_ENV)
