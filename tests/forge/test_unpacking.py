"""Archives that mean harm to whoever unpacks them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from palestra.errors import TaskError
from palestra.forge.unpacking import unpack


def test_files_come_out_of_a_tarball_and_of_a_zip(tmp_path: Path) -> None:
    packed = tarball(tmp_path / "a.tar.gz", {"a/b.py": b"x = 1\n"})
    unpack(packed, tmp_path / "one")
    assert (tmp_path / "one/a/b.py").read_text() == "x = 1\n"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/b.py", "x = 2\n")
    unpack(tmp_path / "a.zip", tmp_path / "two")
    assert (tmp_path / "two/a/b.py").read_text() == "x = 2\n"


@pytest.mark.timeout(300)
def test_a_header_of_a_gigabyte_takes_no_memory_here(tmp_path: Path) -> None:
    """It would be read whole before its file's size could be looked at."""
    header = tarfile.TarInfo("PaxHeaders/a")
    header.type, header.size = tarfile.XHDTYPE, 2 << 30
    packed = tmp_path / "a.tar.gz"
    with gzip.open(packed, "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(2 << 10):
            file.write(bytes(1 << 20))
    assert packed.stat().st_size < 16 << 20
    with pytest.raises(TaskError, match=r"a\.tar\.gz cannot be unpacked: .* of memory"):
        unpack(packed, tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"], "half a source is left"


def test_broken_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = tarball(tmp_path / "whole.tar.gz", {"a.py": bytes(range(256)) * 300}).read_bytes()
    broken = {
        "cut.tar.gz": whole[: len(whole) // 2],
        "bits.tar.gz": whole[:40] + b"\xff" * 40 + whole[80:],
        "none.tar.xz": b"\xfd7zXZ\0" + b"\xff" * 200,
        "none.tar.bz2": b"BZh9" + b"\xff" * 200,
        "empty.tar": b"",
        "none.zip": b"PK",
        "locked.zip": encrypted(),
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TaskError, match=f"{name} cannot be unpacked: .") as raised:
            unpack(tmp_path / name, tmp_path / "tree")
        assert "\n" not in raised.value.message, name
        assert not (tmp_path / "tree").exists(), name


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a")
    link.type, link.linkname = tarfile.SYMTYPE, "b"
    hard = tarfile.TarInfo("c")
    hard.type, hard.linkname = tarfile.LNKTYPE, "a"
    for name, members in {"through": [link, file_of("a/x")], "hard": [link, hard]}.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.addfile(file_of("b/y"))
            for member in members:
                archive.addfile(member)
        with pytest.raises(TaskError, match="through a link"):
            unpack(tmp_path / f"{name}.tar", tmp_path / "tree")


def test_a_disk_full_of_nothing_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.bin", bytes(64 << 20))
    with pytest.raises(TaskError, match="unpacks to more than"):
        unpack(packed, tmp_path / "tree")


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def file_of(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def encrypted() -> bytes:
    """A zip with one file that says that it is locked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.py", "x = 1\n")
    data = bytearray(buffer.getvalue())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)
