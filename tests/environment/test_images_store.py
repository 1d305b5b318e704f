"""The store of unpacked images, and the unpacking of hostile tarballs."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from palestra.environment.sandboxes.images import ImageStore, canonical_name
from palestra.environment.sandboxes.unpack import unpack_tar
from palestra.errors import HostError, ImageError

SWE_GYM = "xingyaoww/sweb.eval.x86_64.getmoto_s_moto-7365"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "rootfs/bin").mkdir(parents=True)
    return tmp_path / "rootfs"


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def member(
    name: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    link: str = "",
    data: bytes = b"",
    mode: int = 0o644,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), mode
    info.uid = info.gid = 4242
    info.mtime = 1_500_000_000
    return info, data


def test_names_and_tags(tmp_path: Path, rootfs: Path) -> None:
    store = ImageStore(tmp_path / "store")
    assert store.names() == ()
    added = store.add(SWE_GYM, rootfs, env={"A": "1"}, workdir="/testbed")
    assert store.resolve(SWE_GYM) == store.resolve(f"{SWE_GYM}:latest") == added
    assert added.rootfs == rootfs.resolve()
    store.add("host:5000/a/b", rootfs)
    store.add("x" * 250, rootfs)
    assert store.names() == ("host:5000/a/b:latest", f"{SWE_GYM}:latest", f"{'x' * 250}:latest")
    assert [p.parent for p in (tmp_path / "store").iterdir()] == [tmp_path / "store"] * 3
    store.add(SWE_GYM, rootfs, env={"A": "2"})
    assert dict(store.resolve(SWE_GYM).env) == {"A": "2"}
    assert canonical_name("a@sha256:00") == "a@sha256:00"


def test_what_is_refused(tmp_path: Path, rootfs: Path) -> None:
    store = ImageStore(tmp_path / "store")
    with pytest.raises(ImageError, match="palestra images add nope"):
        store.resolve("nope")
    for name in ("", "../x", "a b", "/etc", "a\n"):
        with pytest.raises(ImageError, match="no name of an image"):
            store.resolve(name)
    with pytest.raises(ImageError, match="no /bin"):
        store.add("a", tmp_path)
    with pytest.raises(ImageError, match="environment variable"):
        store.add("a", rootfs, env={"A B": "1"})
    with pytest.raises(ImageError, match="not absolute"):
        store.add("a", rootfs, workdir="x")
    with pytest.raises(ImageError, match="not a number"):
        store.add("a", rootfs, user="postgres")
    store.add("a", rootfs)
    (rootfs / "bin").rmdir()
    rootfs.rmdir()
    with pytest.raises(ImageError, match="is gone"):
        store.resolve("a")
    (tmp_path / "store/a%3Alatest.json").write_text("{}")
    with pytest.raises(ImageError, match="broken"):
        store.resolve("a")


@pytest.mark.parametrize("compression", ["", ":gz", ":xz"])
def test_import(tmp_path: Path, compression: str) -> None:
    tar = make_tar(
        tmp_path / "a.tar",
        member("usr/", tarfile.DIRTYPE, mode=0o555),
        member("usr/bin/tool", data=b"tool", mode=0o4755),
        member("./bin", tarfile.SYMTYPE, link="usr/bin"),
        member("etc/mtab", tarfile.SYMTYPE, link="/proc/mounts"),
        member("usr/bin/hard", tarfile.LNKTYPE, link="usr/bin/tool"),
        member("dev/null", tarfile.CHRTYPE),
        member("etc/secret", data=b"s", mode=0),
        member("etc/secret", data=b"later", mode=0o600),
        mode=f"w{compression}",
    )
    store = ImageStore(tmp_path / "store")
    image = store.import_tar("app", tar, env={"PATH": "/usr/bin"})
    tool = image.rootfs / "usr/bin/tool"
    assert tool.read_bytes() == b"tool"
    assert tool.stat().st_mode & 0o7777 == 0o755
    assert (tool.stat().st_uid, tool.stat().st_mtime) == (os.getuid(), 1_500_000_000)
    assert (image.rootfs / "usr/bin/hard").samefile(tool)
    assert (image.rootfs / "etc/mtab").readlink() == Path("/proc/mounts")
    assert (image.rootfs / "etc/secret").read_bytes() == b"later"
    assert not (image.rootfs / "dev/null").exists()
    assert (image.rootfs / "usr").stat().st_mtime == 1_500_000_000
    again = store.import_tar("app", tar)
    assert not image.rootfs.exists()
    assert store.resolve("app") == again


@pytest.mark.parametrize(
    "members",
    [
        [member("../escaped", data=b"x")],
        [member("a/../../escaped", data=b"x")],
        [member("a", tarfile.SYMTYPE, link=".."), member("a/escaped", data=b"x")],
        [member("a", tarfile.SYMTYPE, link="/tmp"), member("a/escaped", data=b"x")],
        [member("a", tarfile.SYMTYPE, link=".."), member("a/", tarfile.DIRTYPE)],
        [member("a", tarfile.SYMTYPE, link="../.."), member("a/b/", tarfile.DIRTYPE)],
        [member("escaped", tarfile.LNKTYPE, link="../secret")],
        [
            member("a", tarfile.SYMTYPE, link=".."),
            member("escaped", tarfile.LNKTYPE, link="a/secret"),
        ],
        [member("a", tarfile.LNKTYPE, link="nowhere")],
        [member("a/", tarfile.DIRTYPE), member("a", data=b"x")],
    ],
)
def test_tarballs_that_escape(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/secret").write_text("hunter2")
    tar = make_tar(tmp_path / "evil.tar", *members)
    store = ImageStore(tmp_path / "store")
    with pytest.raises(ImageError, match="tarball"):
        store.import_tar("evil", tar)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["secret"]
    assert not (tmp_path / "escaped").exists()
    assert store.names() == ()


def test_a_file_replaces_a_symlink_instead_of_following_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("intact")
    (tmp_path / "out").mkdir()
    tar = make_tar(
        tmp_path / "a.tar",
        member("a", tarfile.SYMTYPE, link=str(victim)),
        member("a", data=b"new"),
    )
    unpack_tar(tar, tmp_path / "out")
    assert victim.read_text() == "intact"
    assert (tmp_path / "out/a").read_bytes() == b"new"


def test_absolute_paths_land_inside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    unpack_tar(make_tar(tmp_path / "a.tar", member("/etc/x", data=b"x")), tmp_path / "out")
    assert (tmp_path / "out/etc/x").read_bytes() == b"x"


def test_broken_tarballs(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    (tmp_path / "no.tar").write_bytes(b"not a tarball at all" * 100)
    with pytest.raises(ImageError, match="no usable tarball"):
        store.import_tar("a", tmp_path / "no.tar")
    whole = make_tar(tmp_path / "whole.tar", member("bin/x", data=b"x" * 100_000))
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:50_000])
    with pytest.raises(ImageError, match="no usable tarball"):
        store.import_tar("a", tmp_path / "cut.tar")
    with pytest.raises(HostError, match="none"):
        store.import_tar("a", tmp_path / "none.tar")
    assert list((tmp_path / "store").iterdir()) == []
