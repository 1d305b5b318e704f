"""What registries do: fail for a while, hold back, speak in several formats; and the command line.

A real registry, with a real proxy before it where it must misbehave or be counted.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from image_registry import (
    ELSEWHERE,
    HERE,
    MISSING,
    Registry,
    base_layer,
    entry,
    registry,
    tar_of,
    write_layout,
)
from registry_proxy import RegistryProxy

from palestra.environment.images.pull import Backoff, ImagePuller
from palestra.environment.images.skopeo import Skopeo
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN, open_engine
from palestra.environment.sandboxes.engine_pull import EnginePulls
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import ImageProgress, SandboxSpec
from palestra.errors import ImageError, RegistryTrouble
from palestra.tasks.katas import KataSpec, generate_rows

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return base_layer(tmp_path_factory.mktemp("base") / "rootfs")


def puller(store: ImageStore, host: str) -> ImagePuller:
    backoff = Backoff(num_attempts=4, first_s=0.01)
    return ImagePuller(store, source=Skopeo(registry=host), backoff=backoff, reserve_bytes=0)


def ignore(_: ImageProgress) -> None:
    pass


async def said_in(store: ImageStore, state: Path, image: str, command: str) -> str:
    backend = BubblewrapBackend(store=store, state_dir=state)
    async with backend.start(SandboxSpec(image=image, workdir="/")) as sandbox:
        return (await sandbox.run(command, timeout_s=60)).output


# --- a registry that is busy ----------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("what", ["manifests", "blobs"])
async def test_a_busy_registry_is_asked_again(
    served: Registry, base: bytes, tmp_path: Path, what: str, status: int
) -> None:
    write_layout(tmp_path / "layout", [base])
    served.push(tmp_path / "layout", "r/busy")
    # skopeo asks five times itself, and only where it is told to come later.
    left = itertools.chain([status] * (8 if status == 429 else 2), itertools.repeat(None))
    store = ImageStore(tmp_path / "store")
    async with RegistryProxy(
        served.host, lambda path: next(left) if f"/{what}/" in path else None
    ) as proxy:
        await puller(store, proxy.host).ensure("r/busy", ignore)
    assert store.has("r/busy")
    assert proxy.statuses.count(status) >= 1


async def test_one_that_stays_busy_is_named(served: Registry, base: bytes, tmp_path: Path) -> None:
    async with RegistryProxy(served.host, lambda path: 503 if "r/" in path else None) as proxy:
        with pytest.raises(RegistryTrouble, match=r"cannot fetch r/down.*503"):
            await puller(ImageStore(tmp_path), proxy.host).ensure("r/down", ignore)
    assert proxy.statuses.count(503) >= 4


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packing", "form"), [("gzip", "v2s2"), ("zstd", "oci"), ("none", "oci"), ("none", "v2s2")]
)
async def test_formats_of_layers_and_manifests(
    served: Registry, base: bytes, tmp_path: Path, packing: str, form: str
) -> None:
    name = f"f/{packing}-{form}"
    upper = tar_of(entry("testbed/"), entry("testbed/.wh.readme.txt"), entry("word", b"hello"))
    write_layout(tmp_path / "layout", [base, upper], packing=packing, Env=["X=y"])
    served.push(tmp_path / "layout", name, form=form)
    kind = json.loads(served.manifest(name, "latest"))["mediaType"]
    assert ("docker" in kind) == (form == "v2s2")
    store = ImageStore(tmp_path / "store")
    await puller(store, served.host).ensure(name, ignore)
    said = await said_in(store, tmp_path / "state", name, "cat /word; echo $X; ls /testbed")
    assert said == "helloy\n"


async def test_an_index_gives_this_machines_image(
    served: Registry, base: bytes, tmp_path: Path
) -> None:
    found = []
    for architecture in (ELSEWHERE, HERE):
        layers = [base, tar_of(entry("arch", architecture.encode()))]
        write_layout(tmp_path / architecture, layers, architecture=architecture)
        served.push(tmp_path / architecture, f"i/both:{architecture}")
        found.append((served.manifest("i/both", architecture), architecture))
    served.push_index("i/both", "1", found)
    served.push_index("i/both", "other", found[:1])
    store = ImageStore(tmp_path / "store")
    await puller(store, served.host).ensure("i/both:1", ignore)
    assert await said_in(store, tmp_path / "state", "i/both:1", "cat /arch") == HERE
    with pytest.raises(ImageError, match=f"no variant for linux/{HERE}"):
        await puller(store, served.host).ensure("i/both:other", ignore)


# --- engines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DOCKER, PODMAN], ids=["docker", "podman"])
async def test_engines_pull_from_loopback(
    served: Registry, base: bytes, tmp_path: Path, kind: Any
) -> None:
    if not os.environ.get("PALESTRA_TEST_IMAGE"):
        pytest.skip("$PALESTRA_TEST_IMAGE: no engines")
    name = f"e/{kind.name}"
    write_layout(tmp_path / "layout", [base, tar_of(entry("big", os.urandom(4 << 20)))])
    served.push(tmp_path / "layout", name)
    image = f"{served.host}/{name}:latest"
    async with open_engine(kind) as api:
        try:
            pulls = EnginePulls()
            await asyncio.gather(*(pulls.ensure(api, image, ignore) for _ in range(3)))
            assert await api.has_image(image)
        finally:
            await _remove_image(kind.name, image)
        with pytest.raises(ImageError, match=f"no image {served.host}/e/none:latest"):
            await pulls.ensure(api, f"{served.host}/e/none", ignore)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", [DOCKER, PODMAN], ids=["docker", "podman"])
async def test_engines_ask_a_busy_registry_again(
    served: Registry, base: bytes, tmp_path: Path, kind: Any, status: int
) -> None:
    if not os.environ.get("PALESTRA_TEST_IMAGE"):
        pytest.skip("$PALESTRA_TEST_IMAGE: no engines")
    name = f"b/{kind.name}-{status}"
    write_layout(tmp_path / "layout", [base])
    served.push(tmp_path / "layout", name)
    left = itertools.chain([status], itertools.repeat(None))
    async with (
        RegistryProxy(
            served.host, lambda path: next(left) if "/manifests/" in path else None
        ) as proxy,
        open_engine(kind) as api,
    ):
        image = f"{proxy.host}/{name}:latest"
        try:
            await EnginePulls().ensure(api, image, ignore)
        finally:
            await _remove_image(kind.name, image)
    assert proxy.statuses.count(status) >= 1


async def _remove_image(engine: str, image: str) -> None:
    process = await asyncio.create_subprocess_exec(
        engine, "rmi", image, stdout=asyncio.subprocess.DEVNULL
    )
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0


# --- the command line -----------------------------------------------------------------------------


def task_file(folder: Path, *images: str) -> Path:
    """Tasks that name these images."""
    rows = generate_rows(KataSpec(split="train", num_tasks=len(images), levels=(0,)))
    path = folder / "tasks.jsonl"
    with path.open("w") as file:
        for row, image in zip(rows, images, strict=True):
            plain = {key: value for key, value in row.items() if key != "files"}
            file.write(json.dumps({**plain, "image": image}) + "\n")
    return path


@asynccontextmanager
async def palestra_images(
    *arguments: str | Path, state: Path | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    env = {**os.environ, **({"PALESTRA_STATE": str(state)} if state else {})}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "palestra", "images", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def images(*arguments: str | Path, state: Path | None = None) -> tuple[int, str, str]:
    async with palestra_images(*arguments, state=state) as process:
        stdout, stderr = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode is not None
        assert b"Traceback" not in stderr, stderr.decode()
        return process.returncode, stdout.decode(), stderr.decode()


async def test_a_killed_pull_goes_on(served: Registry, base: bytes, tmp_path: Path) -> None:
    layers = [base, *(tar_of(entry(f"big{n}", os.urandom(3 << 20))) for n in range(3))]
    *early, late = write_layout(tmp_path / "layout", layers)
    served.push(tmp_path / "layout", "k/killed")
    tasks, store = task_file(tmp_path, "k/killed"), tmp_path / "store"
    async with RegistryProxy(served.host) as proxy:
        command = ("pull", tasks, "--registry", proxy.host, "--images", store, "--reserve-gb", "0")
        proxy.held.add(late)
        async with palestra_images(*command) as process:
            await _until(
                lambda: all(list(store.glob(f"pulls/*/blobs/sha256/{d[7:]}")) for d in early)
            )
            await _until(lambda: proxy.fetched(late) > 0)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        before = {digest: proxy.fetched(digest) for digest in (*early, late)}
        proxy.held.clear()
        status, _, said = await images(*command)
    assert status == 0, said
    assert [proxy.fetched(digest) - before[digest] for digest in early] == [0, 0, 0]
    size = served.blob(late).stat().st_size
    assert before[late] < size
    assert proxy.fetched(late) - before[late] >= size
    assert "1 of 1 images are there" in said
    said = await said_in(ImageStore(store), tmp_path / "state", "k/killed", "ls -d /big*")
    assert said == "/big0\n/big1\n/big2\n"
    assert list((store / "pulls").iterdir()) == []


async def _until(holds: Any) -> None:
    for _ in range(int(PATIENCE_S / 0.02)):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S:g} s")


async def test_pull_list_and_prune(served: Registry, base: bytes, tmp_path: Path) -> None:
    for name in ("c/one", "c/two"):
        layout = tmp_path / name.replace("/", "-")
        write_layout(layout, [base, tar_of(entry("name", name.encode()))])
        served.push(layout, name)
    folder, state = tmp_path / "store", tmp_path / "state"
    tasks = task_file(tmp_path, "c/one", "c/two", "c/none", "c/one")
    pull = ("pull", tasks, "--registry", served.host, "--images", folder, "--reserve-gb", "0")
    status, out, said = await images(*pull, "--json")
    assert status == 1
    answer = json.loads(out)
    assert (answer["images"], [item["image"] for item in answer["failed"]]) == (3, ["c/none"])
    assert "check its name and tag" in answer["failed"][0]["error"]
    assert "2 of 3 images are there" in said
    status, out, _ = await images("list", "--images", folder, "--json")
    assert [(row["name"], row["bytes"] > 0) for row in json.loads(out)] == [
        ("c/one:latest", True),
        ("c/two:latest", True),
    ]
    for name in ("c%2Fone", "c%2Ftwo"):
        os.utime(folder / f"{name}%3Alatest.json", (0, 0))
    store = ImageStore(folder)
    prune = ("prune", "--images", folder, "--unused-for", "1", "--json")
    backend = BubblewrapBackend(store=store, state_dir=state)
    async with backend.start(SandboxSpec(image="c/one", workdir="/")) as sandbox:
        os.utime(folder / "c%2Fone%3Alatest.json", (0, 0))
        status, out, _ = await images(*prune, state=state)
        assert (status, json.loads(out)["images"]) == (0, ["c/two:latest"])
        assert (await sandbox.run("cat /name; ls /bin/sh", timeout_s=60)).output == "c/one/bin/sh\n"
    os.utime(folder / "c%2Fone%3Alatest.json", (0, 0))
    status, out, _ = await images(*prune, state=state)
    assert (status, json.loads(out)["images"]) == (0, ["c/one:latest"])
    status, out, _ = await images("list", "--images", folder)
    assert (status, out) == (0, "")


async def test_what_the_command_line_refuses(tmp_path: Path) -> None:
    tasks, store = task_file(tmp_path, "x/y"), tmp_path / "store"
    (tmp_path / "file").write_text("no tarball")
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    wrong: list[tuple[tuple[str | Path, ...], tuple[str, ...]]] = [
        (("pull", tmp_path / "none.jsonl"), ("none.jsonl",)),
        (("pull", tasks, "--backend", "lxc"), ("lxc", "bubblewrap, docker, podman")),
        (("pull", tasks, "--backend", "docker", "--registry", "h:1"), ("--registry",)),
        (("add", "x/y", tmp_path / "nothing"), ("nothing",)),
        (("add", "x/y", tmp_path), ("no root file system",)),
        (("add", "x/y", tmp_path / "file"), ("no usable tarball",)),
        (("add", "../x", rootfs), ("no name of an image",)),
        (("add", "x/y", rootfs, "--env", "A"), ("KEY=VALUE",)),
    ]
    for arguments, says in wrong:
        status, _, said = await images(*arguments, "--images", store)
        assert status != 0, arguments
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (arguments, said)
        for text in says:
            assert text in errors[0], (arguments, said)
