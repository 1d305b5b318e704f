"""Trees, diffs and the commit of a changed project, against git itself."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from palestra.errors import HostError, TaskError
from palestra.forge.repository import commit_after, diff_between, diff_of
from palestra.tasks.patches import flaw_of_setup

FILES = {
    "package/__init__.py": b"",
    "package/core.py": b"def double(n):\n    return 2 * n\n" + b"# line\n" * 20 + b"# end",
    "package/café one.py": b"x = 1\n",
    "tests/test_core.py": b"def test_it():\n\tassert True\r\n\x0c\n",
    "run.sh": b"exit 0\n",
    ".gitattributes": b"*.py -diff\n",
}
_WHO = {"NAME": "palestra", "EMAIL": "palestra@localhost", "DATE": "1600000000 +0000"}
_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    **{f"GIT_{role}_{key}": _WHO[key] for role in ("AUTHOR", "COMMITTER") for key in _WHO},
}


def git(folder: Path, *arguments: str, text: bytes = b"") -> bytes:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=_ENV, input=text, capture_output=True
    )
    assert done.returncode == 0, f"git {arguments}: {done.stderr!r}"
    return done.stdout


def write(folder: Path, files: Mapping[str, bytes | None]) -> None:
    for name, data in files.items():
        path = folder / name
        if data is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    top = tmp_path / "project"
    top.mkdir()
    git(top, "init", "-q", "-b", "main")
    write(top, FILES)
    (top / "run.sh").chmod(0o755)
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", "a project")
    return top


def copy_with(checkout: Path, changes: Mapping[str, bytes | None], name: str) -> Path:
    """Another checkout, with ``changes`` in its working tree."""
    folder = checkout.parent / name
    git(checkout.parent, "clone", "-q", str(checkout), str(folder))
    write(folder, changes)
    return folder


def commit_by_git(folder: Path) -> str:
    git(folder, "add", "-A", "-f")
    tree = git(folder, "write-tree").decode().strip()
    return git(folder, "commit-tree", tree, text=b"Initial commit\n").decode().strip()


CORE = FILES["package/core.py"]
CHANGES: dict[str, dict[str, bytes | None]] = {
    "an edit": {"package/core.py": CORE.replace(b"2 * n", b"3 * n")},
    "several edits": {
        "package/core.py": CORE.replace(b"2 * n", b"3 * n").replace(b"# end", b"# other end"),
        "run.sh": b"exit 1\n",
        "tests/test_core.py": b"def test_it():\n\tassert False\r\n\x0c\n",
    },
    "a file gone": {"tests/test_core.py": None},
    "a new file": {"package/deep/er.py": b"y = 1\n", "nothing.py": b""},
    "a name of other letters": {"package/café one.py": b"x = 2\n"},
    "another name": {"package/core.py": None, "package/moved.py": CORE},
    "nothing": {},
    "as it was": {"package/core.py": CORE},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_commit_is_the_one_that_git_makes(
    checkout: Path, changes: dict[str, bytes | None]
) -> None:
    assert commit_after(checkout, changes) == commit_by_git(copy_with(checkout, changes, "other"))


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_git_applies_the_diff_and_comes_to_the_same_commit(
    checkout: Path, changes: dict[str, bytes | None]
) -> None:
    patch = diff_of(checkout, changes)
    other = copy_with(checkout, {}, "other")
    if patch:
        assert flaw_of_setup(patch) is None
        git(other, "apply", "--index", "--whitespace=nowarn", text=patch.encode())
    assert commit_by_git(other) == commit_after(checkout, changes)
    assert bool(patch) == (commit_after(checkout, changes) != commit_after(checkout, {}))


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_diff_between_changes_leads_from_one_to_the_other(
    checkout: Path, changes: dict[str, bytes | None]
) -> None:
    before = {"package/core.py": b"broken\n", "left.py": b"over\n", "run.sh": None}
    patch = diff_between(checkout, before, changes)
    other = copy_with(checkout, before, "other")
    git(other, "add", "-A")
    git(other, "apply", "--index", "--whitespace=nowarn", text=patch.encode())
    assert commit_by_git(other) == commit_after(checkout, changes)


def test_a_diff_has_three_lines_of_context_and_plain_names(checkout: Path) -> None:
    git(checkout, "config", "diff.context", "9")
    git(checkout, "config", "diff.noprefix", "true")
    patch = diff_of(checkout, {"package/core.py": CORE.replace(b"# end", b"# other")})
    assert patch.startswith("diff --git a/package/core.py b/package/core.py\n")
    assert patch.endswith(
        "@@ -20,4 +20,4 @@ def double(n):\n # line\n # line\n # line\n-# end\n"
        "\\ No newline at end of file\n+# other\n\\ No newline at end of file\n"
    )


def test_the_checkout_is_not_touched(checkout: Path) -> None:
    def state() -> list[tuple[str, int, bytes]]:
        files = sorted(path for path in checkout.rglob("*") if path.is_file())
        # git notes on an object that somebody has asked to write it again.
        return [
            (str(p), 0 if "objects" in p.parts else p.stat().st_mtime_ns, p.read_bytes())
            for p in files
        ]

    before = state()
    for changes in CHANGES.values():
        commit_after(checkout, changes)
        diff_between(checkout, changes, {})
    assert state() == before


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../other", "a/../../b", ".git/config", "a/.GIT/b", "a\nb", 'a"b', ""]
)
def test_a_path_that_is_none_of_the_repository_is_refused(checkout: Path, path: str) -> None:
    with pytest.raises(TaskError, match="no path in the repository"):
        commit_after(checkout, {path: b"x"})


@pytest.mark.parametrize("data", [b"a\0b\n", b"caf\xe9\n"])
def test_what_is_no_text_has_no_diff(checkout: Path, data: bytes) -> None:
    with pytest.raises(TaskError, match=r"binary|UTF-8"):
        diff_of(checkout, {"package/core.py": data})


def test_a_file_that_git_converts_is_refused(checkout: Path) -> None:
    (checkout / ".gitattributes").write_bytes(b"*.sh text eol=crlf\n")
    (checkout / "run.sh").write_bytes(b"exit 0\r\n")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "converted")
    with pytest.raises(TaskError, match=r"run\.sh is not as git keeps it"):
        commit_after(checkout, {"run.sh": b"exit 1\r\n"})


def test_a_link_is_refused(checkout: Path) -> None:
    (checkout / "link.py").symlink_to("package/core.py")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "a link")
    with pytest.raises(TaskError, match="no plain file"):
        commit_after(checkout, {"link.py": b"x = 1\n"})


def test_what_is_no_repository_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="read-tree"):
        commit_after(tmp_path, {"a.py": b""})


def test_the_settings_of_the_user_do_not_count(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gitconfig").write_text("[core]\n\tautocrlf = true\n[diff]\n\tnoprefix = true\n")
    expected = diff_of(checkout, CHANGES["an edit"]), commit_after(checkout, CHANGES["an edit"])
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert diff_of(checkout, CHANGES["an edit"]) == expected[0]
    assert commit_after(checkout, CHANGES["an edit"]) == expected[1]


def test_it_takes_no_time_to_speak_of(checkout: Path) -> None:
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        commit_after(checkout, CHANGES["an edit"])
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.5  # a fraction of a sandbox's start, on a busy machine
