"""The root file system that projects are laid on: an image of the store, or made here."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from palestra.environment.images.locks import locked
from palestra.environment.sandboxes.images import ImageStore, UnpackedImage
from palestra.environment.sandboxes.prepared import identity_of
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits, SandboxSpec
from palestra.errors import HostError, ImageError, TaskError

USUAL_BASE = "palestra/forge-base"
_PACKAGES = "git,python3,procps,ca-certificates"
_RELEASE = "bookworm"
_LIMITS = SandboxLimits(memory_bytes=1 << 30, num_pids=64, disk_bytes=256 << 20)
_MAKE_TIMEOUT_S = 1800.0
_ASK_TIMEOUT_S = 60.0
# Versions and tags that wheels are chosen by, and where packages of this Python lie.
_QUESTION = """\
import json, platform, shutil, site, sys
print(json.dumps({
    "missing": " ".join(name for name in ("git", "bash") if not shutil.which(name)),
    "sites": ":".join(site.getsitepackages()),
    "implementation_name": sys.implementation.name,
    "os_name": "posix",
    "platform_machine": platform.machine(),
    "platform_python_implementation": platform.python_implementation(),
    "platform_release": "",
    "platform_system": platform.system(),
    "platform_version": "",
    "python_full_version": platform.python_version(),
    "python_version": "%d.%d" % sys.version_info[:2],
    "sys_platform": sys.platform,
    "glibc": platform.libc_ver()[1],
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A root file system with Python, git and bash.

    Attributes:
        image: in the store.
        identity: of its content.
        sites: folders of installed packages, absolute in the image.
        markers: what a requirement's markers see there.
        glibc: version of its C library; empty where it has another one.
    """

    image: UnpackedImage
    identity: str
    sites: tuple[str, ...]
    markers: dict[str, str]
    glibc: str

    @property
    def site(self) -> str:
        """Where further packages are installed."""
        return self.sites[0]

    @property
    def python(self) -> str:
        """``3.11``."""
        return self.markers["python_version"]


async def find_base(
    named: str | None, *, store: ImageStore, backend: SandboxBackend, say: Callable[[str], None]
) -> Base:
    """The base system: the one that is named, or the usual one, which is made if need be.

    Raises:
        ImageError: it is not in the store, or is no root file system.
        TaskError: it has no Python, git or bash.
        HostError: it cannot be made on this machine; says with which commands it can be had.
    """
    image = await _image(named, store, say)
    return await _asked(image, backend)


async def _image(named: str | None, store: ImageStore, say: Callable[[str], None]) -> UnpackedImage:
    if named is None:
        return await _usual(store, say)
    return _folder_or_name(named, store)


def _folder_or_name(named: str, store: ImageStore) -> UnpackedImage:
    folder = Path(named)
    if folder.is_dir():
        digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        return store.add(f"{USUAL_BASE}-{digest}", folder)
    return store.resolve(named)


async def _usual(store: ImageStore, say: Callable[[str], None]) -> UnpackedImage:
    if store.has(USUAL_BASE):
        return store.resolve(USUAL_BASE)
    tree = store.folder / "forge-base"
    store.folder.mkdir(parents=True, exist_ok=True)
    async with locked(store.folder / "forge-base.lock", timeout_s=_MAKE_TIMEOUT_S):
        if not store.has(USUAL_BASE):
            await asyncio.to_thread(_debootstrap, tree, say)
            return store.add(USUAL_BASE, tree)
    return store.resolve(USUAL_BASE)


def _debootstrap(tree: Path, say: Callable[[str], None]) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _RELEASE, str(tree)]
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise HostError(
            "there is no base system for projects, and making one takes root and debootstrap",
            hint=f"as root: apt-get install debootstrap && {' '.join(command)}; then "
            f"--base {tree}, or --base NAME of an image with python3 and git that was pulled",
        )
    say("making the base system (about a minute, once)")
    shutil.rmtree(tree, ignore_errors=True)
    try:
        site = _package_site()
        done = subprocess.run(
            [*command, *site], capture_output=True, text=True, timeout=_MAKE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"debootstrap does not get through: {error}") from error
    if done.returncode != 0:
        shutil.rmtree(tree, ignore_errors=True)
        raise HostError(f"debootstrap failed: {(done.stderr or done.stdout).strip()[-300:]}")
    for left in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(tree / left, ignore_errors=True)


def _package_site() -> list[str]:
    """Where apt has its packages of that release; nothing where debootstrap's own will do."""
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    for line in done.stdout.splitlines():
        release, _, site = line.partition(" ")
        if release == _RELEASE and site.startswith("http"):
            return [site]
    return []


async def _asked(image: UnpackedImage, backend: SandboxBackend) -> Base:
    spec = SandboxSpec(image=image.name, workdir="/", limits=_LIMITS)
    async with backend.start(spec) as sandbox:
        await sandbox.write_file("/tmp/question.py", _QUESTION.encode())
        answer = await sandbox.run("python3 -I /tmp/question.py", timeout_s=_ASK_TIMEOUT_S)
    try:
        said: dict[str, str] = orjson.loads(answer.output.strip().splitlines()[-1])
    except (orjson.JSONDecodeError, IndexError):
        tail = answer.output.strip()[-300:]
        raise ImageError(f"the Python of {image.name} does not say its version: {tail!r}") from None
    if missing := said.pop("missing"):
        raise TaskError(f"the base system {image.name} has no {missing}")
    sites, glibc = tuple(said.pop("sites").split(":")), said.pop("glibc")
    return Base(image=image, identity=identity_of(image), sites=sites, markers=said, glibc=glibc)
