"""Every place in which the conformance suite starts sandboxes, and why one is not there.

``$PALESTRA_TEST_IMAGE`` names the engines' image with bash, git and python3 (else the
recipe's default), ``$PALESTRA_TEST_BUSYBOX`` the one with nothing but busybox, and
``$PALESTRA_TEST_ROOTFS`` the unpacked tree of the first. ``tools/test_engines.sh`` makes all
of them, starts the engines and sets these variables.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from palestra.config import SandboxSection
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN, EngineKind, open_engine
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.local import LocalBackend
from palestra.environment.sandboxes.protocol import (
    CommandResult,
    Sandbox,
    SandboxBackend,
    SandboxSpec,
)
from palestra.errors import PalestraError
from palestra.records import HOST_IMAGE, TaskFile

IMAGE = os.environ.get("PALESTRA_TEST_IMAGE", SandboxSection().host_image)
BUSYBOX = os.environ.get("PALESTRA_TEST_BUSYBOX", "palestra-test/busybox")
ROOTFS = os.environ.get("PALESTRA_TEST_ROOTFS", "")
ENGINES: dict[str, EngineKind] = {"docker": DOCKER, "podman": PODMAN}
FILES = (
    TaskFile(path="calc.py", text="def add(a, b):\n    return a - b\n"),
    TaskFile(path="pkg/inner/run.sh", text="#!/bin/sh\necho ran\n", executable=True),
)
SPEC = SandboxSpec(
    image=HOST_IMAGE, workdir="/testbed", files=FILES, env={"FROM_SPEC": "it came along"}
)
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A backend, and the image that it starts from.

    Attributes:
        name: as the tests' id has it.
        make: the backend, from a folder for its state.
        image: what a spec shall name.
        has_git: whether git, bash and Python are in it.
    """

    name: str
    make: Callable[[Path], SandboxBackend]
    image: str = HOST_IMAGE
    has_git: bool = True

    @property
    def backend_name(self) -> str:
        return self.name.partition("-")[0]


def _unpacked(image: str) -> Callable[[Path], SandboxBackend]:
    def make(state: Path) -> SandboxBackend:
        store = ImageStore(state / "store")
        if image == IMAGE:
            if not ROOTFS:
                missing("$PALESTRA_TEST_ROOTFS names no unpacked tree")
            store.add(image, Path(ROOTFS), env=ENV)
        else:
            store.add(image, busybox_tree(state / "busybox"), env=ENV)
        return BubblewrapBackend(store=store, state_dir=state / "state")

    return make


def _on_host(state: Path) -> SandboxBackend:
    return BubblewrapBackend(store=None, state_dir=state / "state")


def _in_engine(kind: EngineKind) -> Callable[[Path], SandboxBackend]:
    return lambda _: EngineBackend(kind, host_image=IMAGE)


PLACES = (
    Place(name="bubblewrap", make=_on_host),
    Place(name="bubblewrap-debian", make=_unpacked(IMAGE), image=IMAGE),
    Place(name="bubblewrap-busybox", make=_unpacked(BUSYBOX), image=BUSYBOX, has_git=False),
    Place(name="docker", make=_in_engine(DOCKER)),
    Place(name="docker-busybox", make=_in_engine(DOCKER), image=BUSYBOX, has_git=False),
    Place(name="podman", make=_in_engine(PODMAN)),
    Place(name="podman-busybox", make=_in_engine(PODMAN), image=BUSYBOX, has_git=False),
    Place(name="local", make=lambda state: LocalBackend(state_dir=state)),
)


def require(place: Place, folder: Path) -> None:
    """Skip, saying why, unless sandboxes of ``place`` start on this machine."""
    try:
        asyncio.run(_try(place, folder))
    except PalestraError as error:
        missing(f"{place.name}: {error}")


def missing(what: str) -> NoReturn:
    """Skip, or fail where everything is to be tested."""
    if os.environ.get("PALESTRA_TEST_REQUIRE"):
        pytest.fail(what)
    pytest.skip(what)


async def _try(place: Place, folder: Path) -> None:
    if place.image == HOST_IMAGE or place.backend_name not in ENGINES:
        await place.make(folder).check()
        return
    async with open_engine(ENGINES[place.backend_name]) as api:
        await api.image_user(place.image)


def busybox_tree(folder: Path) -> Path:
    """A root file system of busybox alone: no bash, no Python, no C library."""
    program = shutil.which("busybox")
    if program is None:
        missing("there is no busybox (apt-get install busybox-static)")
    if (folder / "bin/busybox").exists():
        return folder
    for name in ("bin", "dev", "etc", "proc", "root", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copy2(program, folder / "bin/busybox")
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    for name in listed.split():
        if not (folder / "bin" / name).exists():
            (folder / "bin" / name).symlink_to("busybox")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return folder


async def run(box: Sandbox, command: str, timeout_s: float = 30) -> CommandResult:
    return await box.run(command, timeout_s=timeout_s)


async def output(box: Sandbox, command: str) -> str:
    done = await run(box, command)
    assert done.exit_code == 0, f"{command}: {done}"
    return done.output
