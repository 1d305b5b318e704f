"""Bringing an image into the store: fetched by skopeo, unpacked once per layer.

Below the store's folder lie ``l/`` (layers by digest), ``pulls/`` (what is half fetched,
kept for the next attempt) and ``locks/``. A layer appears under its name by one rename,
whole or not at all. A pull holds the locks of the layers that it brings, so that two
images of one base, or two processes, fetch it once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from palestra.environment.images.layers import Room, merge_layers, num_bytes_below, unpack_blob
from palestra.environment.images.locks import locked
from palestra.environment.images.manifest import (
    Blob,
    ImageConfig,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from palestra.environment.images.skopeo import Skopeo
from palestra.environment.images.users import resolve_user
from palestra.environment.sandboxes.images import ImageStore, canonical_name
from palestra.environment.sandboxes.protocol import ImageProgress, OnProgress
from palestra.errors import HostError, ImageError, RegistryTrouble

RESERVE_BYTES = 2 << 30
"""Free space that pulls leave on the disk."""
MAX_LAYERS = 30
"""An overlay's options must fit a page of memory; above this the lowest are merged."""

T = TypeVar("T")

_LOCK_TIMEOUT_S = 6 * 3600.0
_UNPACKED_PER_PACKED = 3.5
_PROGRESS_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How often a busy registry is asked again, and after how many seconds."""

    num_attempts: int = 6
    first_s: float = 2.0
    longest_s: float = 60.0

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after ``attempt`` (from 0); spread, so that many do not come at once."""
        return min(self.first_s * 2.0**attempt, self.longest_s) * random.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    blob: Blob
    diff_id: str
    folder: Path


class ImagePuller:
    """Brings images into one store.

    Args:
        store: where they go.
        source: the registry.
        backoff: for a registry that is busy.
        reserve_bytes: free space that must stay on the disk.
    """

    def __init__(
        self,
        store: ImageStore,
        *,
        source: Skopeo | None = None,
        backoff: Backoff | None = None,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self._store = store
        self._source = source or Skopeo()
        self._backoff = backoff or Backoff()
        self._room = Room(store.folder, reserve_bytes)
        self._promised_bytes = 0

    async def ensure(self, image: str, on_progress: OnProgress) -> None:
        """Bring ``image``; at once when it is there.

        Raises:
            ImageError: it is unknown, refused or broken, or the registry stayed busy.
            HostError: the disk is or would be full, or there is no skopeo.
        """
        name = canonical_name(image)
        if self._store.has(name):
            return
        try:
            for folder in ("l", "pulls", "locks"):
                (self._store.folder / folder).mkdir(parents=True, exist_ok=True)
            async with (
                locked(self._store.lock, timeout_s=_LOCK_TIMEOUT_S, shared=True),
                locked(self._lock(f"i-{_key(name)}"), timeout_s=_LOCK_TIMEOUT_S) as lock_fd,
            ):
                if not self._store.has(name):
                    await self._pull(name, lock_fd, on_progress)
        except OSError as error:
            raise HostError.from_os(error, doing=f"cannot store {image}") from error

    async def _pull(self, name: str, lock_fd: int, on_progress: OnProgress) -> None:
        layout = self._store.folder / "pulls" / _key(name)
        digest, manifest = await self._retried(lambda: self._manifest(name))
        async with AsyncExitStack() as locks:
            # In one order everywhere, so that nobody waits for each other.
            for blob in sorted({layer.digest for layer in manifest.layers}):
                if not self._marker(blob).exists():
                    path = self._lock(f"l-{_hex(blob)}")
                    await locks.enter_async_context(locked(path, timeout_s=_LOCK_TIMEOUT_S))
            missing = self._prepare(layout, manifest)
            size = sum(blob.num_bytes for blob in missing)
            async with self._promise(int(size * (1 + _UNPACKED_PER_PACKED)), name):
                watch = _Watch(layout, missing, on_progress)
                await self._retried(lambda: self._copy(name, layout, digest, lock_fd, watch))
                config = _read_config(layout, name)
                await self._unpack(name, layout, manifest, config, digest)
        shutil.rmtree(layout, ignore_errors=True)

    async def _manifest(self, name: str) -> tuple[str, Manifest]:
        data = await self._source.manifest(name)
        found = parse_manifest(data, image=name)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if isinstance(found, str):
            digest = found
            found = parse_manifest(await self._source.manifest(name, digest=digest), image=name)
            if isinstance(found, str):
                raise ImageError(f"{name}: an index of indexes")
        return digest, found

    async def _copy(
        self, name: str, layout: Path, digest: str, lock_fd: int, watch: _Watch
    ) -> None:
        reporting = asyncio.ensure_future(watch.report())
        try:
            await self._source.copy(
                name, layout, digest=digest, lock_fd=lock_fd, size=watch.done_bytes
            )
        finally:
            reporting.cancel()
            await asyncio.wait([reporting])
            _remove_partial(layout)

    def _prepare(self, layout: Path, manifest: Manifest) -> list[Blob]:
        """Stand-ins for blobs whose layers are here already; return what is to be fetched.

        skopeo fetches no blob of which a file lies in its place.
        """
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        _remove_partial(layout)
        missing = []
        for blob in {layer.digest: layer for layer in manifest.layers}.values():
            path = _blob_path(layout, blob)
            if self._known_diff_id(blob) is not None:
                path.write_bytes(b"")
            else:
                if path.exists() and path.stat().st_size != blob.num_bytes:
                    path.unlink()
                missing.append(blob)
        return missing

    async def _unpack(
        self, name: str, layout: Path, manifest: Manifest, config: ImageConfig, digest: str
    ) -> None:
        if len(config.diff_ids) != len(manifest.layers):
            raise ImageError(f"{name}: its configuration and its manifest differ in layers")
        layers = [
            _Layer(blob=blob, diff_id=diff_id, folder=self._store.layer(diff_id))
            for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        ]
        for layer in layers:
            known = self._known_diff_id(layer.blob)
            if known is not None and known != layer.diff_id:
                raise ImageError(f"{name}: its layer {layer.blob.digest[:19]} is another's")
            if known is None:
                # Under the lock of what it holds: the same content can come compressed in
                # different ways, as different blobs.
                path = self._lock(f"d-{_hex(layer.diff_id)}")
                async with locked(path, timeout_s=_LOCK_TIMEOUT_S):
                    await self._unpack_one(layout, layer)
        await self._register(name, digest, config, layers)

    async def _unpack_one(self, layout: Path, layer: _Layer) -> None:
        path = _blob_path(layout, layer.blob)

        def unpack(stop: threading.Event, target: Path) -> None:
            unpack_blob(
                path,
                target,
                digest=layer.blob.digest,
                diff_id=layer.diff_id,
                stop=stop,
                room=self._room,
            )

        try:
            await self._build(layer.folder, unpack)
        except ImageError:
            path.unlink(missing_ok=True)  # it is fetched anew next time
            raise
        marker = self._marker(layer.blob.digest)
        temporary = marker.with_name(f"{marker.name}.{secrets.token_hex(4)}")
        temporary.write_text(layer.diff_id)
        temporary.rename(marker)

    async def _build(self, folder: Path, fill: Callable[[threading.Event, Path], None]) -> None:
        if _exists(folder):
            return
        temporary = folder.with_name(f".new-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            temporary.mkdir(mode=0o755)
            temporary.chmod(0o755)  # it becomes the sandbox's /, whatever the umask
            await _in_thread(lambda stop: fill(stop, temporary))
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    async def _register(
        self, name: str, digest: str, config: ImageConfig, layers: list[_Layer]
    ) -> None:
        # An overlay refuses one folder twice; the upper occurrence alone gives the same.
        ids = [layer.diff_id for layer in layers]
        stack = tuple(
            layer.folder for at, layer in enumerate(layers) if layer.diff_id not in ids[at + 1 :]
        )
        folders = await self._bounded(stack)
        size = await _in_thread(lambda _: sum(map(num_bytes_below, stack)))
        self._store.add_pulled(
            name,
            folders,
            sources=stack,
            env=config.env,
            workdir=config.workdir,
            user=resolve_user(config.user, stack, image=name),
            digest=digest,
            num_bytes=size,
        )

    async def _bounded(self, stack: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(stack) <= MAX_LAYERS:
            return stack
        lowest = stack[: len(stack) - MAX_LAYERS + 1]
        text = "\n".join(folder.name for folder in lowest)
        merged = self._store.layer(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}")
        async with locked(self._lock(f"m-{merged.name}"), timeout_s=_LOCK_TIMEOUT_S):
            await self._build(merged, lambda _, target: merge_layers(lowest, target))
        return (merged, *stack[len(lowest) :])

    def _known_diff_id(self, blob: Blob) -> str | None:
        """What the blob holds, where that has been unpacked and is still here."""
        try:
            diff_id = self._marker(blob.digest).read_text()
        except FileNotFoundError:
            return None
        return diff_id if self._store.layer(diff_id).is_dir() else None

    def _marker(self, digest: str) -> Path:
        return self._store.folder / "l" / f"{_hex(digest)}.blob"

    def _lock(self, name: str) -> Path:
        return self._store.folder / "locks" / name

    @asynccontextmanager
    async def _promise(self, needed_bytes: int, name: str) -> AsyncIterator[None]:
        self._room.check(self._promised_bytes + needed_bytes, doing=f"pulling {name}")
        self._promised_bytes += needed_bytes
        try:
            yield
        finally:
            self._promised_bytes -= needed_bytes

    async def _retried(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        for attempt in range(self._backoff.num_attempts - 1):
            try:
                return await work()
            except RegistryTrouble:
                await asyncio.sleep(self._backoff.delay_s(attempt))
        return await work()


class _Watch:
    """How far a fetch is, by what lies in its folder."""

    def __init__(self, layout: Path, blobs: list[Blob], on_progress: OnProgress) -> None:
        self._layout = layout
        self._blobs = blobs
        self._total_bytes = sum(blob.num_bytes for blob in blobs)
        self._on_progress = on_progress

    def done_bytes(self) -> int:
        """Bytes that have come."""
        paths = [_blob_path(self._layout, blob) for blob in self._blobs]
        paths += self._layout.glob("oci-put-blob*")
        return min(sum(map(_size, paths)), self._total_bytes)

    async def report(self) -> None:
        """Tell it again and again, until cancelled."""
        first, started_s = self.done_bytes(), time.monotonic()
        while True:
            done = self.done_bytes()
            rate = (done - first) / max(time.monotonic() - started_s, 1e-3)
            self._on_progress(
                ImageProgress(
                    done_bytes=done,
                    total_bytes=self._total_bytes,
                    seconds_left=(self._total_bytes - done) / rate if rate > 0 else None,
                )
            )
            await asyncio.sleep(_PROGRESS_INTERVAL_S)


async def _in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run ``work`` in a thread; a cancellation sets its event and waits for it to end."""
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(partial(work, stop)))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


def _read_config(layout: Path, name: str) -> ImageConfig:
    """The configuration that skopeo wrote; not the registry's, since it translates."""
    try:
        index = (layout / "index.json").read_bytes()
        digest = parse_index(index, image=name)
        manifest = parse_manifest((layout / "blobs/sha256" / _hex(digest)).read_bytes(), image=name)
        if isinstance(manifest, str):
            raise ImageError(f"{name}: an index of indexes")
        return parse_config(_blob_path(layout, manifest.config).read_bytes(), image=name)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: skopeo left no {error.filename}") from None


def _remove_partial(layout: Path) -> None:
    for left in layout.glob("oci-put-blob*"):
        left.unlink(missing_ok=True)


def _exists(folder: Path) -> bool:
    return folder.is_dir()


def _blob_path(layout: Path, blob: Blob) -> Path:
    return layout / "blobs" / "sha256" / _hex(blob.digest)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
