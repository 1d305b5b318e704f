"""A root file system whose repository knows the future in every place that git has for it."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import zlib
from pathlib import Path

from small_rootfs import make_rootfs

PROGRAMS = (
    *("awk", "chmod", "cksum", "cp", "cut", "find", "grep", "mktemp", "mv", "rmdir", "sed"),
    *("sort", "tar", "touch", "tr", "uniq", "wc"),
)
# Each is written in one place only, so that what is found says where.
FUTURES = (
    *("loose", "packed", "stash", "reflog", "remote", "url", "tag", "latetag", "notes"),
    *("replaced", "alternate", "worktree", "mirror", "clone", "bundle", "staged", "submodule"),
    *("fetchhead", "message", "cached", "straypack"),
)
KEPT = ("past", "child", "untracked", "ignored", "edited", "added", "submodulepast")
_MARK = re.compile(rb"MARK-([a-z]+)-KRAM")
_TIME_S = 1_600_000_000
_DAY_S = 86_400


def mark(name: str) -> str:
    return f"MARK-{name}-KRAM"


class _Git:
    """Runs git in one folder, a day later each time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.day = 0

    def __call__(self, *arguments: str, text: str = "") -> str:
        self.day += 1
        when = f"{_TIME_S + self.day * _DAY_S} +0000"
        who = {f"GIT_{role}_{key}": "a" for role in ("AUTHOR", "COMMITTER") for key in ("NAME",)}
        who |= {"GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_EMAIL": "a@b"}
        settings = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
        dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        done = subprocess.run(
            ["git", "-c", "protocol.file.allow=always", *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **who, **settings, **dates},
            input=text,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def commit(self, name: str, file: str = "code.txt") -> str:
        """A commit that writes the mark ``name``."""
        (self.folder / file).write_text(f"{mark(name)}\n")
        self("add", file)
        self("commit", "-q", "-m", f"commit {name}")
        return self("rev-parse", "HEAD")

    def drop(self, name: str) -> str:
        """A commit of which HEAD knows nothing; its id."""
        commit = self.commit(name)
        self("reset", "-q", "--hard", "HEAD~1")
        return commit


def make_leaky_rootfs(folder: Path) -> str:
    """Assemble it in ``folder``; return the base commit of the repository in ``/testbed``."""
    make_rootfs(folder, more=PROGRAMS)
    top, aside = folder / "testbed", folder / "srv"
    (top / "readme.txt").unlink()
    (top / "package").mkdir()
    (top / "package/module.txt").write_text("of this project alone\n")
    (top / ".gitignore").write_text("*.so\n")
    aside.mkdir()
    git = _Git(top)
    git("init", "-q", "-b", "main")
    git("add", ".")
    _submodule(git, folder)
    git.commit("past")
    git("tag", "v1", "-m", "first")
    git.commit("past", "other.txt")
    base = git.commit("past", "more.txt")
    _future(git, base, aside)
    _present(git)
    cache = folder / "root/.cache/pip"
    cache.mkdir(parents=True)
    (cache / "wheel").write_text(mark("cached"))
    return base


def _submodule(git: _Git, folder: Path) -> None:
    origin = folder / "tmp/origin"
    origin.mkdir()
    other = _Git(origin)
    other("init", "-q", "-b", "main")
    then = other.commit("submodulepast")
    other.commit("submodule")
    git("submodule", "--quiet", "add", str(origin), "sub")
    _Git(git.folder / "sub")("checkout", "-q", then)
    git("add", "sub")
    git("config", "--unset", "submodule.sub.url")
    subprocess.run(["rm", "-rf", str(origin)], check=True)


def _future(git: _Git, base: str, aside: Path) -> None:
    git("branch", "fix")
    git("checkout", "-q", "fix")
    packed = git.commit("packed")
    git("checkout", "-q", "main")
    git("tag", "v2", packed, "-m", mark("tag"))
    git("update-ref", "refs/heads/gone", git.drop("reflog"))
    git("update-ref", "-d", "refs/heads/gone")
    git("gc", "-q", "--prune=never")
    git("tag", "v1.note", f"{base}~1", "-m", mark("latetag"))
    git("notes", "add", "-m", mark("notes"), base)
    git("update-ref", "refs/remotes/origin/main", git.drop("remote"))
    git("remote", "add", "origin", f"file:///{mark('url')}")
    git("replace", f"{base}~1", git.drop("replaced"))
    (git.folder / "code.txt").write_text(mark("stash"))
    git("stash")
    _elsewhere(git, aside)
    (git.folder / ".git/FETCH_HEAD").write_text(f"{packed}\t\tbranch '{mark('fetchhead')}'\n")
    loose = git.drop("loose")
    (git.folder / ".git/ORIG_HEAD").write_text(f"{loose}\n")


def _elsewhere(git: _Git, aside: Path) -> None:
    """Other repositories and files of this one."""
    _Git(git.folder)("worktree", "add", "-q", str(aside / "worktree"), "-b", "wt")
    _Git(aside / "worktree").commit("worktree")
    # Where they are once the folder is a root file system.
    (git.folder / ".git/worktrees/worktree/gitdir").write_text("/srv/worktree/.git\n")
    (aside / "worktree/.git").write_text("gitdir: /testbed/.git/worktrees/worktree\n")
    for name, options in (("mirror", ["--mirror"]), ("clone", [])):
        git("clone", "-q", "--no-local", "--no-hardlinks", *options, ".", str(aside / name))
    _Git(aside / "clone").commit("clone")
    tree = git("rev-parse", "HEAD^{tree}")
    _bare_commit(_Git(aside / "mirror"), tree, "mirror")
    bundled = git("commit-tree", "-p", "HEAD", "-m", mark("bundle"), tree)
    git("update-ref", "refs/heads/bundled", bundled)
    git("bundle", "create", "-q", str(aside / "all.bundle"), "bundled", "^main")
    git("update-ref", "-d", "refs/heads/bundled")
    (git.folder / ".git/objects" / bundled[:2] / bundled[2:]).unlink()
    stray = git("hash-object", "-w", "--stdin", text=mark("straypack"))
    git("pack-objects", "-q", str(aside / "stray"), text=stray)
    (git.folder / ".git/objects" / stray[:2] / stray[2:]).unlink()
    alternate = aside / "alternate"
    alternate.mkdir()
    store = _Git(alternate)
    store("init", "-q", "--bare", ".")
    store("hash-object", "-w", "--stdin", text=mark("alternate"))
    info = git.folder / ".git/objects/info/alternates"
    info.write_text("../../../srv/alternate/objects\n")


def _bare_commit(git: _Git, tree: str, name: str) -> None:
    git("update-ref", "refs/heads/later", git("commit-tree", "-m", mark(name), tree))


def _present(git: _Git) -> None:
    """What the image is: a commit on top of the base commit, and uncommitted changes."""
    top = git.folder
    git.commit("child", "setup.txt")
    (top / "untracked.txt").write_text(mark("untracked"))
    (top / "built.so").write_text(mark("ignored"))
    (top / "more.txt").write_text(mark("edited"))
    (top / "added.txt").write_text(mark("added"))
    (top / "other.txt").write_text(mark("staged"))
    git("add", "added.txt", "other.txt")
    (top / "other.txt").write_text("not as staged\n")
    (top / ".git/COMMIT_EDITMSG").write_text(mark("message"))


def marks_in(tar: Path) -> set[str]:
    """Every mark in the files of ``tar``, in plain text or anywhere in git's compression."""
    found: set[str] = set()
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                found |= marks_of(stream.read())
    return found


def marks_of(data: bytes) -> set[str]:
    """Every mark in ``data``, as it is or anywhere in git's compression."""
    texts = [data]
    for at in (match.start() for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data)):
        try:
            texts.append(zlib.decompressobj().decompress(data[at:]))
        except zlib.error:
            continue  # no stream begins here
    return {name.decode() for text in texts for name in _MARK.findall(text)}
