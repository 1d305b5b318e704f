"""What a project could do to this machine while it is fetched and read."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from palestra.forge import fetching
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
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)
