"""What a sandbox hands out as bytecode: only caches of modules that are there are taken."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from palestra.errors import TaskError
from palestra.forge.bytecode import take_caches

TAG = "cpython-311.pyc"


def test_only_caches_of_modules_are_taken(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "a").mkdir(parents=True)
    for name in ("one.py", "a/two.py"):
        (site / name).write_text("")
    (tmp_path / "three.py").write_text("")
    before = files_below(tmp_path)
    harm = (
        *("a/two.py", "evil.pth", "a/evil.py", "__pycache__/evil.py", f"a/two.{TAG}"),
        *(f"__pycache__/four.{TAG}", f"a/__pycache__/one.{TAG}", f"b/__pycache__/two.{TAG}"),
        *(f"../__pycache__/three.{TAG}", f"{tmp_path}/__pycache__/three.{TAG}"),
        *("__pycache__/one.so", f"__pycache__/x/one.{TAG}", f"a/../../__pycache__/three.{TAG}"),
    )
    good = (f"./__pycache__/one.{TAG}", f"./a/__pycache__/two.{TAG}")
    take_caches(packed(*good, *harm), site)
    new = {path.removeprefix("site/") for path in files_below(tmp_path) - before}
    assert new == {f"__pycache__/one.{TAG}", f"a/__pycache__/two.{TAG}"}
    assert (site / "a/two.py").read_text() == "", "a module was replaced"
    assert (site / f"__pycache__/one.{TAG}").read_bytes() == b"data"


def test_links_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("")
    folder, link = tarfile.TarInfo("__pycache__"), tarfile.TarInfo(f"__pycache__/one.{TAG}")
    folder.type, folder.linkname = tarfile.SYMTYPE, "/etc"
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    take_caches(packed(members=(folder, link)), tmp_path)
    assert files_below(tmp_path) == {"one.py"}


@pytest.mark.parametrize("data", [b"", b"x" * 2000, b"\x1f\x8b\x08" + bytes(600)])
def test_what_is_no_plain_tarball_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no tarball"):
        take_caches(data, tmp_path)


def packed(*names: str, members: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.addfile(member)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"data"))
    return buffer.getvalue()


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
