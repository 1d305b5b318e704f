"""A project becomes an image: its repository and what it needs, as one layer on a base system.

Requirements come as wheels, which are unpacked and not run; the project itself is not installed
but put on the path, so there is no second copy of it. What any of it would like to do on this
machine it can only do in a sandbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from packaging.utils import canonicalize_name

from palestra.environment.images.layers import num_bytes_below
from palestra.environment.images.locks import locked
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxBackend
from palestra.errors import HostError, ImageError, TaskError
from palestra.forge.base import Base, find_base
from palestra.forge.bytecode import add_bytecode
from palestra.forge.checkout import BRANCH, check_out
from palestra.forge.copies import copies, in_its_place
from palestra.forge.fetching import Fetched, fetch
from palestra.forge.imports import imported_by
from palestra.forge.layout import Layout, read_layout
from palestra.forge.metadata import Metadata, read_metadata
from palestra.forge.records import Project
from palestra.forge.requirements import install, installed, joined

LAYOUT_VERSION = 4
"""Raised whenever an equal project would give another image."""
WORKDIR = "testbed"
_LOCK_TIMEOUT_S = 1800.0
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
        TaskError: there is no such project, what it needs cannot be had as wheels, or something
            beside it holds a copy of it.
        HostError: index or disk fail, or there is no base system.
        ImageError: the base is not there or is no root file system.
    """
    system = await find_base(base, store=store, backend=backend, say=say)
    fetched = await fetch(origin, folder)
    if fetched.num_uncommitted:
        say(f"{origin}: {fetched.num_uncommitted} changes that are not committed do not count")
    key = _key(fetched, system)
    locks = folder / "locks"
    try:
        for path in (locks, store.lock.parent):
            path.mkdir(parents=True, exist_ok=True)
        async with (
            # Nobody prunes what no image names yet.
            locked(store.lock, timeout_s=_LOCK_TIMEOUT_S, shared=True),
            # Checkouts are shared between stores.
            locked(locks / f"make-{key[:16]}", timeout_s=_LOCK_TIMEOUT_S),
        ):
            return await _prepared(origin, fetched, key, system, store, backend, folder, say)
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot make the image of {origin}") from error


async def _prepared(
    origin: str,
    fetched: Fetched,
    key: str,
    system: Base,
    store: ImageStore,
    backend: SandboxBackend,
    folder: Path,
    say: Callable[[str], None],
) -> Project:
    source = _read(fetched, system)
    made = folder / "made" / f"{source.name}-{key[:12]}"
    made.mkdir(parents=True, exist_ok=True)
    # Written last: what is needed to know the image again.
    record = made / "made.json"
    image = f"palestra/forge-{source.name}:{key[:12]}"
    checkout = made / "checkout"
    if not (store.has(image) and record.exists()):
        if record.exists() and checkout.is_dir():  # made with another store, and in use perhaps
            commit = str(orjson.loads(record.read_bytes())["commit"])
        else:
            commit = await asyncio.to_thread(check_out, fetched.tree, checkout)
        wanted = _Wanted(image=image, key=key, source=source, checkout=checkout, base=system)
        beside = await asyncio.to_thread(_found, wanted, commit, store)
        if beside is None:
            say(f"{origin}: making its image")
            beside = await _make(wanted, store, backend, say)
        known = {"commit": commit, "requirements": beside, "made_at_s": time.time()}
        record.write_bytes(orjson.dumps(known))
    known = orjson.loads(record.read_bytes())
    return Project(
        name=source.name,
        version=source.metadata.version or fetched.version,
        licence=source.metadata.licence,
        origin=fetched.origin,
        image=image,
        checkout=checkout,
        commit=known["commit"],
        sources=source.layout.sources,
        tests=source.layout.tests,
        python=system.python,
        requirements=tuple(known["requirements"]),
    )


def _key(fetched: Fetched, base: Base) -> str:
    parts = (LAYOUT_VERSION, fetched.origin, base.identity, base.site, base.python)
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """An unpacked source and what it says of itself."""

    fetched: Fetched
    name: str
    metadata: Metadata
    layout: Layout


def _read(fetched: Fetched, base: Base) -> _Source:
    metadata = read_metadata(fetched.tree, base.markers)
    name = canonicalize_name(metadata.name or fetched.name)
    layout = read_layout(fetched.tree, name, metadata.top_level)
    return _Source(fetched=fetched, name=name, metadata=metadata, layout=layout)


# --- the image ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """An image to make.

    Attributes:
        image: its name.
        key: of all that makes it, but for the versions of what is installed.
        source: of the project.
        checkout: its repository.
        base: what it is laid on.
    """

    image: str
    key: str
    source: _Source
    checkout: Path
    base: Base

    def site(self, layer: Path) -> Path:
        """The folder of installed packages in a layer."""
        return layer / self.base.site.lstrip("/")


def _found(wanted: _Wanted, commit: str, store: ImageStore) -> tuple[str, ...] | None:
    """What is installed in the image, where it was made before, with that commit in it."""
    try:
        layer = store.resolve(wanted.image).layers[-1]
        head = layer / WORKDIR / ".git" / "refs" / "heads" / BRANCH
        is_same = head.read_text().strip() == commit
    except (ImageError, OSError):
        return None
    site = wanted.site(layer)
    is_whole = is_same and next(site.rglob("*.pyc"), None) is not None
    return installed(site, wanted.source.name) if is_whole else None


async def _make(
    wanted: _Wanted, store: ImageStore, backend: SandboxBackend, say: Callable[[str], None]
) -> tuple[str, ...]:
    """Make an image; what is installed in it.

    Its layer gets a name that none had before: sandboxes may stand on a former one.
    """
    layer = store.layer(secrets.token_hex(12))
    draft = f"palestra/forge-draft:{layer.name}"
    try:
        beside = await asyncio.to_thread(_fill, layer, wanted, say)
        _register(store, draft, layer, wanted, digest=f"forge-draft:{layer.name}")
        try:
            await add_bytecode(backend, draft, wanted.base.site, wanted.site(layer))
        finally:
            store.forget(draft)
        await asyncio.to_thread(_open_folders, layer)
        # One name can stand for other versions of what is beside the project, one digest cannot.
        identity = hashlib.sha256(orjson.dumps((wanted.key, beside))).hexdigest()
        _register(store, wanted.image, layer, wanted, digest=f"forge:{identity}")
    except BaseException:
        shutil.rmtree(layer, ignore_errors=True)
        raise
    return beside


def _register(store: ImageStore, name: str, layer: Path, wanted: _Wanted, *, digest: str) -> None:
    below = wanted.base.image
    store.add_pulled(
        name,
        (*below.layers, layer),
        sources=(*below.sources, layer),
        env=dict(below.env),
        workdir=f"/{WORKDIR}",
        user=None,
        digest=digest,
        num_bytes=num_bytes_below(layer),
    )


def _fill(layer: Path, wanted: _Wanted, say: Callable[[str], None]) -> tuple[str, ...]:
    """Lay a project and what it needs into a folder; what else is installed there."""
    source, base = wanted.source, wanted.base
    _check_base(source, base)
    site = wanted.site(layer)
    site.mkdir(parents=True)
    imported = imported_by(source.fetched.tree, source.layout.tests)
    asked_for = joined(source.metadata.test_requirements, imported, source.name)
    install(
        replace(source.metadata, test_requirements=asked_for),
        base,
        site,
        own_name=source.name,
        unfit=lambda: _clash(source, site, say),
        say=say,
    )
    _put_on_path(site, source)
    shutil.copytree(wanted.checkout, layer / WORKDIR, symlinks=True)
    _add_programs(layer, base)
    _open_folders(layer)
    return installed(site, source.name)


def _clash(source: _Source, site: Path, say: Callable[[str], None]) -> str:
    """Remove what is imported instead of the project; a copy that has to stay, in a line."""
    tree, layout = source.fetched.tree, source.layout
    for path in list(in_its_place(tree, layout, site)):
        say(f"{source.name}: without another package of its name: {path.relative_to(site)}")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    path, module = next(copies(tree, layout.sources, site), (site, ""))
    return f"{path.relative_to(site)} is a copy of its {module}" if module else ""


def _check_base(source: _Source, base: Base) -> None:
    tree, layout = source.fetched.tree, source.layout
    for layer in base.image.layers:
        for site in (layer / site.lstrip("/") for site in base.sites):
            same = (path for path, _ in copies(tree, layout.sources, site))
            for path in (*in_its_place(tree, layout, site), *same):
                raise TaskError(
                    f"{source.name}: the base system {base.image.name} has a copy of it: "
                    f"/{path.relative_to(layer)}",
                    hint="--base takes another one",
                )


def _put_on_path(site: Path, source: _Source) -> None:
    """Make the repository importable, and the project known to ``importlib.metadata``."""
    metadata, fetched, layout = source.metadata, source.fetched, source.layout
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
