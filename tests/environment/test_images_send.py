"""Images of the store, handed to an engine, are there what they are here."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_rootfs import make_rootfs
from typer.testing import CliRunner

from palestra.cli.main import app
from palestra.environment.images.archive import CONTENT_LABEL, ImageArchive
from palestra.environment.images.send import ImageSender
from palestra.environment.images.tarball import Owner, layer_tar
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN, EngineKind, open_engine
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import ImageProgress, SandboxBackend, SandboxSpec
from palestra.environment.sandboxes.unpack import OPAQUE_XATTR, unpack_layer
from palestra.errors import HostError, ImageError, PalestraError

ENGINES = {"docker": DOCKER, "podman": PODMAN}
ROOT = Owner(uid=0, gid=0)


def _ignore(progress: ImageProgress) -> None:
    pass


def _white_out(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    except PermissionError:
        pytest.skip("no right to make a whiteout here")


def _tar(layer: Path, owner: Owner = ROOT) -> bytes:
    return b"".join(layer_tar(layer, owner))


# --- the tarball of a layer -------------------------------------------------------


def test_a_layer_comes_back_from_its_tarball_as_it_was(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    deep = layer / "a" / ("long" * 40) / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 1500)
    (deep / "file").chmod(0o751)
    (layer / "caf\udce9 \n odd").write_bytes(b"odd")
    (layer / "empty").touch()
    os.utime(layer / "empty", (1_500_000_000, 1_500_000_000))
    (layer / "same").hardlink_to(layer / "empty")
    (layer / "link").symlink_to("a/" + "b" * 150)
    os.mkfifo(layer / "pipe")
    _white_out(layer / "a/gone")
    (layer / "anew").mkdir()
    os.setxattr(layer / "anew", OPAQUE_XATTR, b"y")
    back = tmp_path / "back"
    back.mkdir()
    unpack_layer(io.BytesIO(_tar(layer)), back, name="back")
    assert _listed(back) == _listed(layer)
    assert (back / "same").stat().st_ino == (back / "empty").stat().st_ino
    assert os.getxattr(back / "anew", OPAQUE_XATTR) == b"y"
    assert _tar(back) == _tar(layer), "equal layers give equal bytes"


def _listed(folder: Path) -> list[tuple[str, int, int, bytes | str | int]]:
    rows = []
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        content: bytes | str | int = found.st_rdev
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        time = 0 if path.is_dir() or path.is_symlink() else int(found.st_mtime)
        time = 0 if stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode) else time
        mode = stat.S_IFMT(found.st_mode) if stat.S_ISCHR(found.st_mode) else found.st_mode
        rows.append((str(path.relative_to(folder)), mode, time, content))
    return rows


def test_files_of_the_stores_owner_belong_to_the_user_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/mine").touch()
    with tarfile.open(fileobj=io.BytesIO(_tar(tmp_path / "layer", Owner(uid=7, gid=8)))) as tar:
        assert [(member.uid, member.gid) for member in tar] == [(7, 8)]


def test_a_file_that_would_mean_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".wh.file").touch()
    with pytest.raises(ImageError, match="means something else"):
        _tar(tmp_path)


def test_a_layer_that_changes_after_it_was_measured_is_refused(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    image = store.add("a:1", make_rootfs(tmp_path / "rootfs"))
    archive = ImageArchive.of(image, on_read=lambda _: None)
    assert sum(map(len, archive.pieces())) > archive.num_bytes
    (tmp_path / "rootfs/new").write_bytes(b"x" * 5000)
    with pytest.raises(ImageError, match="changed"):
        list(archive.pieces())


# --- on engines -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Layered:
    """An image of two layers, the upper of which takes something away from the lower."""

    kind: EngineKind
    store: ImageStore
    folder: Path
    name: str

    @property
    def upper(self) -> Path:
        return self.store.layer("sha256:" + "2" * 64)

    @property
    def backends(self) -> tuple[SandboxBackend, ...]:
        here = BubblewrapBackend(store=self.store, state_dir=self.folder / "state")
        return here, EngineBackend(self.kind, host_image=self.name)


@pytest.fixture(params=ENGINES)
def layered(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Layered]:
    kind = ENGINES[request.param]
    try:
        kind.find_socket()
    except PalestraError as error:
        if os.environ.get("PALESTRA_TEST_REQUIRE"):
            raise
        pytest.skip(f"{kind.name}: {error}")
    store = ImageStore(tmp_path / "store")
    made = Layered(
        kind=kind,
        store=store,
        folder=tmp_path,
        name=f"palestra-test/sent:{secrets.token_hex(4)}",
    )
    _fill(made)
    yield made
    asyncio.run(_remove(made))


def _fill(layered: Layered) -> None:
    lower, upper = layered.store.layer("sha256:" + "1" * 64), layered.upper
    lower.mkdir(parents=True)
    make_rootfs(lower, more=("stat", "touch"))
    for name in ("old/below", "gone/below", "kept/below"):
        (lower / "srv" / name).parent.mkdir(parents=True)
        (lower / "srv" / name).write_text("lower\n")
    (upper / "srv/old").mkdir(parents=True)
    (upper / "srv/old/above").write_text("upper\n")
    os.setxattr(upper / "srv/old", OPAQUE_XATTR, b"y")
    _white_out(upper / "srv/gone")
    layered.store.add_pulled(
        layered.name,
        (lower, upper),
        sources=(lower, upper),
        env={"PATH": "/bin", "HOME": "/root", "GREETING": "a b='c'"},
        workdir="/srv/kept",
        user="4242:4343",
        digest="sha256:" + "3" * 64,
        num_bytes=1,
    )


async def _remove(layered: Layered) -> None:
    async with open_engine(layered.kind) as api:
        await api.remove_image(layered.name)
        assert await api.find_image(layered.name) is None


async def test_a_sandbox_of_a_sent_image_is_as_one_of_the_store(layered: Layered) -> None:
    await ImageSender(layered.store, layered.kind).ensure(layered.name, _ignore)
    look = (
        "ls -R /srv /testbed; cat /srv/*/*;"
        ' echo "$GREETING" $PATH; id -u; id -g; stat -c "%u %g %a %Y" /srv/kept /srv/kept/below;'
        " touch /srv/kept/mine && echo may write"
    )
    said = []
    for backend in layered.backends:
        async with backend.start(SandboxSpec(image=layered.name, workdir="/testbed")) as sandbox:
            said.append((await sandbox.run(look, timeout_s=30)).output)
    assert said[0] == said[1]
    assert "may write" in said[1]
    assert "a b='c'" in said[1]
    assert "lower" in said[1]
    assert "gone" not in said[1]


async def test_what_the_engine_has_is_not_sent_again(layered: Layered) -> None:
    told: list[ImageProgress] = []
    sender = ImageSender(layered.store, layered.kind)
    await sender.ensure(layered.name, told.append)
    assert told[-1].done_bytes == told[-1].total_bytes
    async with open_engine(layered.kind) as api:
        before = await api.find_image(layered.name)
    again: list[ImageProgress] = []
    await sender.ensure(layered.name, again.append)
    assert [one for one in again if one.total_bytes] == []
    async with open_engine(layered.kind) as api:
        assert await api.find_image(layered.name) == before


async def test_a_changed_image_replaces_the_former(layered: Layered) -> None:
    sender = ImageSender(layered.store, layered.kind)
    await sender.ensure(layered.name, _ignore)
    async with open_engine(layered.kind) as api:
        before = await api.find_image(layered.name)
    (layered.upper / "srv/old/above").write_text("other\n")
    await sender.ensure(layered.name, _ignore)
    async with open_engine(layered.kind) as api:
        after = await api.find_image(layered.name)
        assert before is not None
        assert after is not None
        assert before.labels[CONTENT_LABEL] != after.labels[CONTENT_LABEL]
        assert await api.find_image(before.image_id) is None, "the former is left behind"


async def test_sending_can_be_given_up(layered: Layered) -> None:
    (layered.upper / "large").write_bytes(b"x" * (64 << 20))
    sender = ImageSender(layered.store, layered.kind)
    begun = asyncio.Event()

    def note(progress: ImageProgress) -> None:
        if progress.done_bytes:
            begun.set()

    sending = asyncio.create_task(sender.ensure(layered.name, note))
    async with asyncio.timeout(60):
        await begun.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    async with open_engine(layered.kind) as api:
        assert await api.find_image(layered.name) is None
    await sender.ensure(layered.name, _ignore)


async def test_a_file_that_cannot_be_read_is_said(layered: Layered) -> None:
    (layered.upper / ".wh.mine").touch()
    with pytest.raises(ImageError, match=r"\.wh\.mine"):
        await ImageSender(layered.store, layered.kind).ensure(layered.name, _ignore)


async def test_an_image_that_is_not_in_the_store_is_an_image_error(layered: Layered) -> None:
    with pytest.raises(ImageError, match="no unpacked image"):
        await ImageSender(layered.store, layered.kind).ensure("no/such:1", _ignore)


async def test_a_store_that_cannot_be_written_is_a_host_error(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    store.add("a:1", make_rootfs(tmp_path / "rootfs"))
    (tmp_path / "store/locks").write_text("in the way")
    with pytest.raises(HostError):
        await ImageSender(store, DOCKER).ensure("a:1", _ignore)


def test_the_command_knows_its_engines(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["images", "send", "rows.jsonl", "--to", "nowhere"])
    assert done.exit_code != 0
    assert "docker, podman" in done.output + str(done.exception)
