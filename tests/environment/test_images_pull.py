"""Pulling from a real registry: layers, sharing, resuming, and what is broken or hostile."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_registry import MISSING, Registry, base_layer, entry, registry, tar_of, write_layout

from palestra.environment.images.prune import PrunePlan, prune
from palestra.environment.images.pull import Backoff, ImagePuller
from palestra.environment.images.skopeo import Skopeo
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import ImageProgress, SandboxSpec
from palestra.errors import HostError, ImageError, RegistryTrouble

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

Push = Callable[..., list[str]]
_SOMEBODY = 54321


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return base_layer(tmp_path_factory.mktemp("base") / "rootfs")


@pytest.fixture
def push(served: Registry, tmp_path: Path) -> Push:
    def pushed(name: str, layers: list[bytes], **config: object) -> list[str]:
        layout = tmp_path / f"layout-{name.replace('/', '_')}"
        digests = write_layout(layout, layers, **config)  # type: ignore[arg-type]
        served.push(layout, name)
        return digests

    return pushed


def puller(store: ImageStore, served: Registry, **options: object) -> ImagePuller:
    return ImagePuller(
        store,
        source=Skopeo(registry=served.host),
        backoff=Backoff(num_attempts=2, first_s=0.01),
        **{"reserve_bytes": 0, **options},  # type: ignore[arg-type]
    )


def ignore(_: ImageProgress) -> None:
    pass


async def run_in(store: ImageStore, state: Path, image: str, command: str) -> str:
    backend = BubblewrapBackend(store=store, state_dir=state)
    async with backend.start(SandboxSpec(image=image, workdir="/")) as sandbox:
        return (await sandbox.run(command, timeout_s=20)).output


async def test_layers_env_user_and_what_they_take_away(
    served: Registry, base: bytes, push: Push, tmp_path: Path
) -> None:
    lower = tar_of(
        entry("a/"), entry("a/gone", b"1"), entry("a/kept", b"2"),
        entry("b/"), entry("b/old", b"3"),
        entry("c/"), entry("c/old", b"4"), entry("d", b"5"),
    )  # fmt: skip
    upper = tar_of(
        entry("a/"), entry("a/.wh.gone"),
        entry("b/"), entry("b/.wh..wh..opq"), entry("b/new", b"6"),
        entry(".wh.c"), entry("c/"), entry("c/new", b"7"), entry("d/"), entry("d/e", b"8"),
    )  # fmt: skip
    push("t/app", [base, lower, upper, lower, upper], Env=["X=1 2", "PATH=/bin"], User="worker")
    store = ImageStore(tmp_path / "store")
    seen: list[ImageProgress] = []
    await puller(store, served).ensure("t/app", seen.append)
    image = store.resolve("t/app")
    assert (image.env["X"], image.user, len(image.layers)) == ("1 2", "1234:1235", 3)
    assert seen
    assert seen[0].total_bytes
    said = await run_in(
        store, tmp_path / "state", "t/app", "echo $X; id -u; cd /; ls a b c d; ls -d .wh* 2>&1"
    )
    assert said.split("\n")[:2] == ["1 2", "1234"]
    assert "a:\nkept\n\nb:\nnew\n\nc:\nnew\n\nd:\ne\n" in said
    assert not list((tmp_path / "store/pulls").iterdir())
    before = seen[:]
    await puller(store, served).ensure("t/app", seen.append)
    assert seen == before, "an image that is there was fetched again"


async def test_more_layers_than_an_overlay_takes(
    served: Registry, base: bytes, push: Push, tmp_path: Path
) -> None:
    steps = [tar_of(entry(f"f{at}", b"x"), entry(f".wh.f{at - 1}")) for at in range(1, 60)]
    push("t/deep", [base, *steps])
    store = ImageStore(tmp_path / "store")
    await puller(store, served).ensure("t/deep", ignore)
    assert len(store.resolve("t/deep").layers) == 30
    said = await run_in(
        store, tmp_path / "state", "t/deep", "cd /; ls -d f*; cat testbed/readme.txt"
    )
    assert said == "f59\nan image\n"


async def test_two_at_once_fetch_one_base_once(
    served: Registry, base: bytes, push: Push, tmp_path: Path
) -> None:
    for name in ("t/one", "t/two"):
        push(name, [base, tar_of(entry("name", name.encode()))])
    store = ImageStore(tmp_path / "store")
    pullers = [puller(store, served) for _ in range(4)]
    totals: list[int] = []
    names = ("t/one", "t/two", "t/one", "t/two")
    await asyncio.gather(
        *(
            one.ensure(name, lambda now: totals.append(now.total_bytes or 0))
            for one, name in zip(pullers, names, strict=True)
        )
    )
    one, two = store.resolve("t/one"), store.resolve("t/two")
    assert one.layers[0] == two.layers[0]
    assert one.layers[1] != two.layers[1]
    assert len([p for p in (tmp_path / "store/l").iterdir() if p.is_dir()]) == 3
    assert len([total for total in set(totals) if total > 100_000]) == 1, "the base came twice"


@pytest.mark.parametrize(
    "members",
    [
        [entry("../escaped", b"x")],
        [entry("a", kind=tarfile.SYMTYPE, link="/tmp"), entry("a/escaped", b"x")],
        [entry("a", kind=tarfile.SYMTYPE, link=".."), entry("a/.wh.escaped")],
        [entry("a/.wh...")],
        [entry(".wh.")],
        [entry("x", kind=tarfile.LNKTYPE, link="../../etc/passwd")],
    ],
)
async def test_hostile_layers(
    served: Registry,
    push: Push,
    tmp_path: Path,
    members: list[tuple[tarfile.TarInfo, bytes]],
) -> None:
    push("t/evil", [tar_of(entry("bin/")), tar_of(*members)])
    store = ImageStore(tmp_path / "store")
    with pytest.raises(ImageError, match="tarball"):
        await puller(store, served).ensure("t/evil", ignore)
    assert store.names() == ()
    assert not [p for p in (tmp_path / "store/l").iterdir() if p.name.startswith(".new")]


async def test_what_does_not_hash_to_what_it_says(
    served: Registry, push: Push, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / "store")
    push("t/liar", [tar_of(entry("bin/"))], diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(ImageError, match="does not hash"):
        await puller(store, served).ensure("t/liar", ignore)
    (digest,) = push("t/rotten", [tar_of(entry("bin/"), entry("rot", os.urandom(4000)))])
    data = bytearray(served.blob(digest).read_bytes())
    data[2000] ^= 255
    served.blob(digest).write_bytes(data)
    with pytest.raises(ImageError, match="broken"):
        await puller(store, served).ensure("t/rotten", ignore)
    assert store.names() == ()


async def test_unknown_unreachable_and_full(
    served: Registry, base: bytes, push: Push, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / "store")
    with pytest.raises(ImageError, match=r"no image t/nope|refuses t/nope"):
        await puller(store, served).ensure("t/nope", ignore)
    nobody = ImagePuller(
        store, source=Skopeo(registry="127.0.0.1:9"), backoff=Backoff(num_attempts=2, first_s=0.01)
    )
    with pytest.raises(RegistryTrouble, match="cannot fetch"):
        await nobody.ensure("t/app", ignore)
    push("t/large", [base])
    with pytest.raises(HostError, match="kept in reserve"):
        await puller(store, served, reserve_bytes=1 << 60).ensure("t/large", ignore)
    assert store.names() == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_fills_up(served: Registry, push: Push, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk]).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        # Far larger than its packed size lets expect.
        push("t/bomb", [tar_of(entry("bin/"), entry("zeros", bytes(30 << 20)))])
        store = ImageStore(disk / "store")
        with pytest.raises(HostError, match=r"full|free"):
            asyncio.run(puller(store, served).ensure("t/bomb", ignore))
        assert store.names() == ()
        assert not [p for p in (disk / "store/l").iterdir() if p.is_dir()]
    finally:
        subprocess.run(["umount", disk], check=True)


_PULL = """
import asyncio, sys
from pathlib import Path
from palestra.environment.images.pull import ImagePuller
from palestra.environment.images.skopeo import Skopeo
from palestra.environment.sandboxes.images import ImageStore
#drop
puller = ImagePuller(
    ImageStore(Path(sys.argv[1])), source=Skopeo(registry=sys.argv[2]), reserve_bytes=0
)
asyncio.run(puller.ensure(sys.argv[3], lambda now: print(now, flush=True)))
"""


def test_killed_in_the_middle(served: Registry, base: bytes, push: Push, tmp_path: Path) -> None:
    push("t/killed", [base, tar_of(entry("big", os.urandom(30 << 20)))])
    store = ImageStore(tmp_path / "store")
    for delay_s in (0.05, 0.2, 0.4):
        with subprocess.Popen(
            [sys.executable, "-c", _PULL, str(store.folder), served.host, "t/killed"],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # the fetch has begun
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
    asyncio.run(asyncio.wait_for(puller(store, served).ensure("t/killed", ignore), 30))
    said = asyncio.run(run_in(store, tmp_path / "state", "t/killed", "cat testbed/readme.txt"))
    assert said == "an image\n"
    assert not list((store.folder / "pulls").iterdir())


async def test_cancelled_in_the_middle(
    served: Registry, base: bytes, push: Push, tmp_path: Path
) -> None:
    push("t/cancelled", [base])
    store = ImageStore(tmp_path / "store")
    begun = asyncio.Event()
    task = asyncio.ensure_future(puller(store, served).ensure("t/cancelled", lambda _: begun.set()))
    await asyncio.wait_for(begun.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [p for p in (store.folder / "l").iterdir() if p.name.startswith(".new")]
    await puller(store, served).ensure("t/cancelled", ignore)
    assert store.has("t/cancelled")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes to another user")
def test_as_an_unprivileged_user(served: Registry, base: bytes, push: Push, tmp_path: Path) -> None:
    push("t/plain", [base, tar_of(entry("testbed/"), entry("testbed/.wh.readme.txt"))])
    folder = Path(f"/var/tmp/palestra-test-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, _SOMEBODY, _SOMEBODY)
    try:
        pulled = _unprivileged(_PULL, folder, str(folder / "store"), served.host, "t/plain")
        assert pulled.returncode == 0, pulled.stderr
        owners = {path.lstat().st_uid for path in (folder / "store").rglob("*")}
        assert owners == {_SOMEBODY}
        ran = _unprivileged(_RUN, folder, str(folder))
        assert ran.stdout == "bin\n0\n", ran.stderr
    finally:
        shutil.rmtree(folder)


# Root may run an interpreter that nobody else can read, so it drops its rights afterwards.
_DROP = """
import concurrent.futures.thread, encodings.ascii, encodings.idna, os
os.setgroups([]); os.setgid({somebody}); os.setuid({somebody})
"""


def _unprivileged(script: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    imports, marker, rest = script.partition("\n#drop\n")
    assert marker
    return subprocess.run(
        [sys.executable, "-c", imports + _DROP.format(somebody=_SOMEBODY) + rest, *arguments],
        env={**os.environ, "HOME": str(home), "XDG_RUNTIME_DIR": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )


_RUN = """
import asyncio, sys
from pathlib import Path
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxSpec
#drop
async def main():
    folder = Path(sys.argv[1])
    backend = BubblewrapBackend(store=ImageStore(folder / "store"), state_dir=folder / "state")
    async with backend.start(SandboxSpec(image="t/plain", workdir="/")) as sandbox:
        done = await sandbox.run("ls -d bin; ls /testbed | head -c9; id -u", timeout_s=20)
        print(done.output, end="")
asyncio.run(main())
"""


async def test_prune(served: Registry, base: bytes, push: Push, tmp_path: Path) -> None:
    for name in ("t/p1", "t/p2"):
        push(name, [base, tar_of(entry("name", name.encode()))])
    store = ImageStore(tmp_path / "store")
    for name in ("t/p1", "t/p2"):
        await puller(store, served).ensure(name, ignore)
    first, second = store.resolve("t/p1"), store.resolve("t/p2")
    os.utime(store.folder / "t%2Fp1%3Alatest.json", (0, 0))
    plan = PrunePlan(unused_for_s=3600)
    lives = await prune(store, plan, in_use=lambda: {layer.name for layer in first.layers})
    assert lives.images == ()
    dry = await prune(store, plan, in_use=tuple, dry_run=True)
    assert (dry.images, dry.num_layers) == (("t/p1:latest",), 1)
    assert store.has("t/p1")
    os.utime(store.folder / "t%2Fp1%3Alatest.json", (0, 0))
    assert await prune(store, plan, in_use=tuple) == dry
    assert not store.has("t/p1")
    assert not first.layers[1].exists()
    assert second.layers[0].is_dir(), "a shared layer went with one of its images"
    recent = await prune(store, PrunePlan(max_bytes=0), in_use=tuple)
    assert recent.images == ()
    gone = await prune(store, PrunePlan(max_bytes=0, settle_s=0), in_use=tuple)
    assert gone.images == ("t/p2:latest",)
    await puller(store, served).ensure("t/p1", ignore)
    assert await run_in(store, tmp_path / "state", "t/p1", "cat /name") == "t/p1"
