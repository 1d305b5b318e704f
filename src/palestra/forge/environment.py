"""A project becomes an image: its repository and what it needs, as one layer on a base system.

Requirements come as wheels, which are unpacked and not run; the project itself is not installed
but put on the path, so there is no second copy of it. What any of it would like to do on this
machine it can only do in a sandbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from palestra.environment.images.layers import num_bytes_below
from palestra.environment.images.locks import locked
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits, SandboxSpec
from palestra.environment.sandboxes.repository import COMMIT_TIME_S
from palestra.errors import HostError, TaskError
from palestra.forge.base import Base, find_base
from palestra.forge.fetching import Fetched, fetch
from palestra.forge.imports import imported_by
from palestra.forge.layout import Layout, read_layout
from palestra.forge.metadata import Metadata, read_metadata
from palestra.forge.records import Project

LAYOUT_VERSION = 3
"""Raised whenever an equal project would give another image."""
WORKDIR = "testbed"
_PYTEST = Requirement("pytest>=7,<9")
_LOCK_TIMEOUT_S = 1800.0
_PIP_TIMEOUT_S = 600.0
_COMPILE_TIMEOUT_S = 300.0
_COMPILING = SandboxLimits(memory_bytes=1 << 30, num_pids=64, disk_bytes=512 << 20)
_MAX_CACHE_BYTES = 256 << 20
_IDENTITY = {
    "GIT_AUTHOR_NAME": "palestra",
    "GIT_AUTHOR_EMAIL": "palestra@localhost",
    "GIT_COMMITTER_NAME": "palestra",
    "GIT_COMMITTER_EMAIL": "palestra@localhost",
    "GIT_AUTHOR_DATE": f"{COMMIT_TIME_S} +0000",
    "GIT_COMMITTER_DATE": f"{COMMIT_TIME_S} +0000",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}
# The index stays good in a sandbox, where inodes, owners and change times look different.
_SETTINGS = {"core.checkStat": "minimal", "core.trustctime": "false", "core.autocrlf": "false"}
# Settings of git, not of the project; what builds leave; and what is not text of anybody.
_LEFT_OUT = (
    *(".git", ".gitattributes", ".gitmodules", "__pycache__", "*.pyc", "*.egg-info", "PKG-INFO"),
    *("build", "dist", ".eggs", ".tox", ".venv", "*.so", "*.orig", "*.rej"),
)
_SHIM = '#!/bin/sh\nexec python3 -m pytest "$@"\n'


async def prepare_project(
    origin: str,
    *,
    store: ImageStore,
    backend: SandboxBackend,
    base: str | None,
    folder: Path,
    say: Callable[[str], None],
) -> Project:
    """Fetch a project and make its image, or find the one that was made before.

    Args:
        origin: ``NAME``, ``NAME==VERSION`` or the folder of a git repository.
        store: gets the image.
        backend: of the sandbox in which the base system's Python is asked for its version.
        base: name of an image or folder with a root file system; ``None``: the usual one.
        folder: where sources and checkouts lie.
        say: told of what takes long or is left out.

    Raises:
        TaskError: there is no such project, or its requirements cannot be had as wheels.
        HostError: index or disk fail, or there is no base system.
        ImageError: the base is not there or is no root file system.
    """
    system = await find_base(base, store=store, backend=backend, say=say)
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = locks / hashlib.sha256(origin.encode()).hexdigest()[:16]
    # Sources are shared between bases, and so are checkouts between stores.
    async with locked(lock, timeout_s=_LOCK_TIMEOUT_S):
        return await _prepared(origin, system, store, backend, folder, say)


async def _prepared(
    origin: str,
    system: Base,
    store: ImageStore,
    backend: SandboxBackend,
    folder: Path,
    say: Callable[[str], None],
) -> Project:
    fetched = await fetch(origin, folder)
    metadata = read_metadata(fetched.tree, system.markers)
    name = canonicalize_name(metadata.name or fetched.name)
    layout = read_layout(fetched.tree, name, metadata.top_level)
    key = _key(fetched, system)
    place = _Place(folder=folder / "made" / f"{name}-{key[:12]}", store=store, key=key)
    place.folder.mkdir(parents=True, exist_ok=True)
    image = f"palestra/forge-{name}:{key[:12]}"
    if not (store.has(image) and place.record.exists()):
        say(f"{origin}: making its image")
        record = await asyncio.to_thread(
            _make, place, image, fetched, metadata, layout, system, say
        )
        await _compile(backend, image, system.site, place.layer)
        place.record.write_bytes(orjson.dumps(record))
    made = orjson.loads(place.record.read_bytes())
    return Project(
        name=name,
        version=metadata.version or fetched.version,
        licence=metadata.licence,
        origin=fetched.origin,
        image=image,
        checkout=place.checkout,
        commit=made["commit"],
        sources=layout.sources,
        tests=layout.tests,
        python=system.python,
        requirements=tuple(made["requirements"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a project's parts lie."""

    folder: Path
    store: ImageStore
    key: str

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    @property
    def record(self) -> Path:
        """Written last: what is needed to know the image again."""
        return self.folder / "made.json"

    @property
    def layer(self) -> Path:
        return self.store.layer(self.key)


def _key(fetched: Fetched, base: Base) -> str:
    parts = (LAYOUT_VERSION, fetched.origin, base.identity, base.site, base.python)
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def _make(
    place: _Place,
    image: str,
    fetched: Fetched,
    metadata: Metadata,
    layout: Layout,
    base: Base,
    say: Callable[[str], None],
) -> dict[str, Any]:
    try:
        commit = _check_out(fetched.tree, place.checkout)
        part = place.layer.with_name(f".new-{place.layer.name}")
        shutil.rmtree(part, ignore_errors=True)
        site = part / base.site.lstrip("/")
        site.mkdir(parents=True)
        name = canonicalize_name(metadata.name or fetched.name)
        imported = imported_by(fetched.tree, layout.tests)
        metadata = replace(
            metadata, test_requirements=_joined(metadata.test_requirements, imported, name)
        )
        installed = _install(metadata, base, site, own_name=name, say=say)
        _put_on_path(site, metadata, fetched, layout)
        shutil.copytree(place.checkout, part / WORKDIR, symlinks=True)
        _add_programs(part, base)
        _open_folders(part)
        shutil.rmtree(place.layer, ignore_errors=True)
        part.rename(place.layer)
        place.store.add_pulled(
            image,
            (*base.image.layers, place.layer),
            sources=(*base.image.sources, place.layer),
            env=dict(base.image.env),
            workdir=f"/{WORKDIR}",
            user=None,
            digest=f"forge:{place.key}",
            num_bytes=num_bytes_below(place.layer),
        )
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot make the image of {fetched.name}") from error
    return {"commit": commit, "requirements": installed, "made_at_s": time.time()}


async def _compile(backend: SandboxBackend, image: str, site: str, layer: Path) -> None:
    """Add the bytecode of what the project needs, by the image's own Python.

    Without it every test run would compile pytest anew, which takes longer than most tests. It
    holds nothing of the project, which is not in ``site``.

    Raises:
        HostError: it cannot be compiled or kept.
    """
    spec = SandboxSpec(image=image, workdir="/", limits=_COMPILING)
    async with backend.start(spec) as sandbox:
        done = await sandbox.run(
            f"cd {site} && python3 -I -m compileall -q --invalidation-mode unchecked-hash . ; "
            "find . -name __pycache__ -print0 | tar --null -T - -cf /tmp/caches.tar",
            timeout_s=_COMPILE_TIMEOUT_S,
        )
        if done.exit_code != 0:
            raise HostError(f"{image}: compiling failed: {done.output.strip()[-200:]}")
        packed = await sandbox.read_file("/tmp/caches.tar", max_bytes=_MAX_CACHE_BYTES)
    await asyncio.to_thread(_unpack_caches, packed, layer / site.lstrip("/"))


def _unpack_caches(packed: bytes, site: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(site, filter="data")


# --- the repository -----------------------------------------------------------


def _check_out(tree: Path, checkout: Path) -> str:
    """Copy the source and make it a repository of one commit; return the commit's id."""
    shutil.rmtree(checkout, ignore_errors=True)
    shutil.copytree(tree, checkout, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for path in sorted(checkout.rglob("*")):
        if path.is_symlink():
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
        if path.is_file():
            os.utime(path, (COMMIT_TIME_S, COMMIT_TIME_S))
    git = ["git", "-C", str(checkout), "-c", "safe.directory=*"]
    _run([*git, "init", "-q", "-b", "main", "--template="])
    for setting, value in _SETTINGS.items():
        _run([*git, "config", setting, value])
    _run([*git, "add", "-A", "-f"])
    _run([*git, "commit", "-q", "--no-verify", "--allow-empty", "-m", "Initial commit"])
    return _run([*git, "rev-parse", "HEAD"]).strip()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, env={**os.environ, **_IDENTITY}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise HostError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


# --- what it needs ------------------------------------------------------------


def _install(
    metadata: Metadata, base: Base, site: Path, *, own_name: str, say: Callable[[str], None]
) -> list[str]:
    """Unpack the wheels of all requirements into ``site``; as few as it must be.

    Raises:
        TaskError: not even the project's own requirements can be had as wheels.
    """
    problem = ""
    for left_out, wanted in _choices(metadata):
        shutil.rmtree(site)
        site.mkdir()
        problem = _pip(wanted, base, site)
        if not problem:
            if left_out:
                say(f"{own_name}: without what its tests ask for: {left_out}")
            break
    else:
        raise TaskError(f"{own_name}: its requirements cannot be had as wheels: {problem}")
    shutil.rmtree(site / "bin", ignore_errors=True)  # programs for this machine's Python
    for cache in site.rglob("__pycache__"):
        shutil.rmtree(cache)
    return sorted(_installed(site, own_name))


def _joined(
    said: Sequence[Requirement], imported: Sequence[Requirement], own_name: str
) -> tuple[Requirement, ...]:
    """What the tests ask for, and what they import without asking."""
    names = {own_name, *(canonicalize_name(one.name) for one in said)}
    return (*said, *(one for one in imported if canonicalize_name(one.name) not in names))


def _choices(metadata: Metadata) -> Iterator[tuple[str, list[Requirement]]]:
    """What is left out, and what is installed, from all to the least."""
    own, tests = list(metadata.requirements), list(metadata.test_requirements)
    yield "", [*own, *tests, _PYTEST]
    plugins = [one for one in tests if one.name.lower().startswith("pytest")]
    yield ", ".join(one.name for one in tests if one not in plugins), [*own, *plugins, _PYTEST]
    yield ", ".join(one.name for one in tests), [*own, _PYTEST]


def _pip(wanted: Sequence[Requirement], base: Base, site: Path) -> str:
    """Install; what went wrong, in a line, or nothing."""
    minor = base.python.replace(".", "")
    command = [
        *(sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"),
        *("--target", str(site), "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", base.markers["python_full_version"], "--abi", f"cp{minor}"),
        *("--abi", "abi3", "--abi", "none", "--upgrade"),
        *(word for tag in _platforms(base) for word in ("--platform", tag)),
        *map(str, wanted),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"pip cannot be run: {error}") from error
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (
        "" if done.returncode == 0 else (lines or [done.stderr.strip()[-200:] or "pip failed"])[-1]
    )


def _platforms(base: Base) -> list[str]:
    """The tags of wheels that run there, the newest first."""
    machine = base.markers["platform_machine"]
    try:
        newest = int(base.glibc.split(".")[1])
    except (IndexError, ValueError):
        return ["any", f"musllinux_1_2_{machine}", f"musllinux_1_1_{machine}"]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    return ["any", *tags, f"manylinux2014_{machine}", f"manylinux1_{machine}"]


def _installed(site: Path, own_name: str) -> Iterator[str]:
    """What was installed, without a copy of the project itself, which is removed."""
    for info in sorted(site.glob("*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        if canonicalize_name(name) != own_name:
            yield f"{canonicalize_name(name)}=={version}"
            continue
        for line in (info / "RECORD").read_text("utf-8").splitlines():
            path = site / line.rsplit(",", 2)[0].strip('"')
            if path.is_file() and site in path.resolve().parents:
                path.unlink()
        shutil.rmtree(info, ignore_errors=True)


def _put_on_path(site: Path, metadata: Metadata, fetched: Fetched, layout: Layout) -> None:
    """Make the repository importable, and the project known to ``importlib.metadata``."""
    (site / "palestra-project.pth").write_text(f"/{WORKDIR}/{layout.root}".rstrip("/") + "\n")
    name = (metadata.name or fetched.name).replace("-", "_")
    version = metadata.version or "0"
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {metadata.name or fetched.name}"]
    lines += [f"Version: {version}", *(f"Requires-Dist: {one}" for one in metadata.requirements)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "INSTALLER").write_text("palestra\n")
    (info / "RECORD").write_text("")
    if layout.packages:
        (info / "top_level.txt").write_text("\n".join(layout.packages) + "\n")
    if metadata.entry_points:
        (info / "entry_points.txt").write_text(metadata.entry_points)


def _add_programs(layer: Path, base: Base) -> None:
    folder = layer / "usr/local/bin"
    folder.mkdir(parents=True, exist_ok=True)
    if not base.image.has_program("python"):
        (folder / "python").symlink_to("/usr/bin/python3")
    (folder / "pytest").write_text(_SHIM)
    (folder / "pytest").chmod(0o755)


def _open_folders(layer: Path) -> None:
    """Readable for whatever user an image runs as, whatever the umask here is."""
    layer.chmod(0o755)
    for path in layer.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        elif path.is_file() and not path.is_symlink() and not path.stat().st_mode & 0o044:
            path.chmod(path.stat().st_mode | 0o044)
