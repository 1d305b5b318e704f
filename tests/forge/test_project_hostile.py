"""What a project could do to this machine while it is fetched and read."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from palestra.environment.sandboxes.repository import root_commit_of
from palestra.forge import fetching
from palestra.forge.checkout import check_out
from palestra.forge.fetching import fetch
from palestra.forge.layout import read_layout
from palestra.forge.metadata import read_metadata

MARKERS = {"python_version": "3.11", "python_full_version": "3.11.2", "sys_platform": "linux"}


def test_a_filter_that_the_repository_configures_is_not_run(tmp_path: Path) -> None:
    folder = repository(tmp_path / "p", {"a.py": "x = 1\n", ".gitattributes": "*.py filter=f\n"})
    mark = tmp_path / "mark"
    git(folder, "config", "filter.f.smudge", f"touch {mark}; cat")
    tree = fetched(folder, tmp_path)
    assert not mark.exists(), "a command of the project ran on this machine"
    assert (tree / "a.py").read_text() == "x = 1\n"


def test_tests_come_though_the_project_leaves_them_out_of_archives(tmp_path: Path) -> None:
    files = {"tests/test_a.py": "", "a.py": "", ".gitattributes": "tests export-ignore\n"}
    tree = fetched(repository(tmp_path / "p", files), tmp_path)
    assert (tree / "tests" / "test_a.py").is_file()


def test_a_repository_named_by_the_environment_is_not_the_one_that_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = repository(tmp_path / "p", {"wanted.py": ""})
    other = repository(tmp_path / "q", {"other.py": ""})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert (fetched(wanted, tmp_path) / "wanted.py").is_file()


def test_a_checkout_never_acts_on_the_repository_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = repository(tmp_path / "users", {"mine.py": ""})
    before = said_by_git(users, "log", "--format=%H", "--all")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text("x = 1\n")
    for name, value in (("GIT_DIR", ".git"), ("GIT_INDEX_FILE", ".git/index")):
        monkeypatch.setenv(name, str(users / value))
    commit = check_out(tmp_path / "tree", tmp_path / "checkout")
    monkeypatch.undo()
    assert said_by_git(users, "log", "--format=%H", "--all") == before
    assert said_by_git(users, "status", "--porcelain") == ""
    assert said_by_git(tmp_path / "checkout", "rev-parse", "HEAD").strip() == commit
    tree = said_by_git(tmp_path / "checkout", "rev-parse", "HEAD^{tree}").strip()
    assert commit == root_commit_of(tree), "the commit depends on who makes it"


def test_changes_that_are_not_committed_are_counted_without_a_command_of_the_project(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"
    files = {"a.py": "x = 1\n", "b.py": "", "c/d.py": "", ".gitattributes": "*.py filter=f\n"}
    folder = repository(tmp_path / "p", files)
    git(folder, "config", "filter.f.clean", f"touch {mark}; cat")
    git(folder, "config", "core.fsmonitor", f"touch {mark}; false")
    assert asyncio.run(fetch(str(folder), tmp_path / "work")).num_uncommitted == 0
    (folder / "a.py").write_text("x = 2\n")
    (folder / "b.py").unlink()
    (folder / "new.py").write_text("")
    assert asyncio.run(fetch(str(folder), tmp_path / "work")).num_uncommitted == 3
    assert not mark.exists(), "a command of the project ran on this machine"


def test_packages_called_build_or_dist_are_kept_below_the_top(tmp_path: Path) -> None:
    kept = ("a/build/core.py", "a/dist.py", "a/dist/__init__.py", "tests/build/test_a.py")
    for path in (*kept, "build/lib/a.py", "dist/a.whl", "a/__pycache__/b.pyc"):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text("")
    check_out(tmp_path / "tree", tmp_path / "checkout")
    assert sorted(said_by_git(tmp_path / "checkout", "ls-files").split()) == sorted(kept)


async def test_a_module_called_pip_in_the_working_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "pip.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert fetching._indexes()
    assert not mark.exists(), "a module of the project ran on this machine"


@pytest.mark.parametrize("name", ["/etc/a", "../a", "a/b", "a\\nb", "", "-r"])
def test_a_name_that_would_be_a_path_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "1/../.."\n')
    metadata = read_metadata(tmp_path, MARKERS)
    assert (metadata.name, metadata.version) == (None, None)


def test_modules_outside_of_the_source_are_not_named(tmp_path: Path) -> None:
    info = tmp_path / "a.egg-info"
    info.mkdir()
    (info / "top_level.txt").write_text("..\n/usr/lib/python3\na\n")
    assert read_metadata(tmp_path, MARKERS).top_level == ("a",)


@pytest.mark.parametrize(
    "text",
    ["project = 3\n", "tool = [1]\n", "[tool]\npoetry = 1\npytest = 1\n", f"a = {'[' * 5000}\n"],
)
def test_configuration_of_odd_shape_is_no_crash(text: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert read_metadata(tmp_path, MARKERS).name is None
    assert read_layout(tmp_path, "a", ()).tests == ()


def test_a_marker_without_sense_leaves_its_line_out(tmp_path: Path) -> None:
    lines = "Name: a\nVersion: 1\nRequires-Dist: b; sys_platform ~= 'q'\nRequires-Dist: c\n"
    (tmp_path / "PKG-INFO").write_text(lines)
    assert [one.name for one in read_metadata(tmp_path, MARKERS).requirements] == ["c"]


def fetched(folder: Path, tmp_path: Path) -> Path:
    return asyncio.run(fetch(str(folder), tmp_path / "work")).tree


def repository(folder: Path, files: Mapping[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", "-A", "-f")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    return folder


def git(folder: Path, *arguments: str) -> None:
    said_by_git(folder, *arguments)


def said_by_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
