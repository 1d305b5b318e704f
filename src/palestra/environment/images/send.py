"""Handing images of the store to a container engine, which may never have heard of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

from palestra.environment.images.archive import CONTENT_LABEL, ImageArchive
from palestra.environment.images.locks import locked
from palestra.environment.sandboxes.engine_api import EngineApi, EngineKind, open_engine
from palestra.environment.sandboxes.images import ImageStore, UnpackedImage
from palestra.environment.sandboxes.protocol import ImageProgress, OnProgress
from palestra.errors import HostError, ImageError

_LOCK_TIMEOUT_S = 600.0
_PIECE_BYTES = 1 << 20
_TELL_BYTES = 16 << 20
_DISK_FULL = "no space left on device"


class ImageSender:
    """Sends images of one store to one engine.

    Args:
        store: from where.
        kind: of the engine.
    """

    def __init__(self, store: ImageStore, kind: EngineKind) -> None:
        self._store = store
        self._kind = kind

    async def ensure(self, image: str, on_progress: OnProgress) -> None:
        """Send ``image`` unless the engine has exactly that one; replace another of its name.

        Raises:
            ImageError: the store does not have it, or it cannot be in an image.
            HostError: it cannot be read, or the engine's disk is full.
            SandboxUnavailable: there is no engine.
            SandboxStartError: the engine broke off.
        """
        found = self._store.resolve(image)
        try:
            self._store.lock.parent.mkdir(parents=True, exist_ok=True)
            async with (
                open_engine(self._kind) as api,
                locked(self._store.lock, timeout_s=_LOCK_TIMEOUT_S, shared=True),
            ):
                archive = await _read(found, on_progress)
                former = await api.find_image(found.name)
                if former is not None and former.labels.get(CONTENT_LABEL) == archive.content:
                    return
                await self._send(api, archive, on_progress)
                if former is not None:
                    await _drop_unnamed(api, former.image_id)
        except OSError as error:
            raise HostError.from_os(error, doing=f"cannot send {image}") from error

    async def _send(self, api: EngineApi, archive: ImageArchive, on_progress: OnProgress) -> None:
        refusal = await api.load(_sending(archive, on_progress))
        if refusal is not None and _DISK_FULL in refusal:
            raise HostError(
                f"cannot send {archive.name}: {self._kind.name}'s disk is full",
                hint="free some space",
            )
        if refusal is not None:
            raise ImageError(f"{self._kind.name} does not take {archive.name}: {refusal}")
        loaded = await api.find_image(archive.name)
        if loaded is None or loaded.labels.get(CONTENT_LABEL) != archive.content:
            raise ImageError(f"{self._kind.name} took {archive.name} and does not have it")


class _Stopped(Exception):
    """Nobody waits for the archive any more."""


async def _read(image: UnpackedImage, on_progress: OnProgress) -> ImageArchive:
    """Read all of an image in a thread, which ends when nobody waits for it any more."""
    loop, stop = asyncio.get_running_loop(), threading.Event()
    done_bytes = told_bytes = 0

    def on_read(num_bytes: int) -> None:
        nonlocal done_bytes, told_bytes
        if stop.is_set():
            raise _Stopped
        done_bytes += num_bytes
        if done_bytes - told_bytes >= _TELL_BYTES:
            told_bytes = done_bytes
            now = ImageProgress(done_bytes=0, total_bytes=None, seconds_left=None)
            loop.call_soon_threadsafe(on_progress, now)

    try:
        return await asyncio.to_thread(ImageArchive.of, image, on_read=on_read)
    finally:
        stop.set()


async def _sending(archive: ImageArchive, on_progress: OnProgress) -> AsyncIterator[bytes]:
    pieces = _larger(archive.pieces())
    began_s, done_bytes = time.monotonic(), 0
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
        done_bytes = min(done_bytes + len(piece), archive.num_bytes)
        rate = done_bytes / max(time.monotonic() - began_s, 1e-3)
        on_progress(
            ImageProgress(
                done_bytes=done_bytes,
                total_bytes=archive.num_bytes,
                seconds_left=(archive.num_bytes - done_bytes) / max(rate, 1.0),
            )
        )


def _larger(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces: each goes through a thread."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        if len(buffer) >= _PIECE_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


async def _drop_unnamed(api: EngineApi, image_id: str) -> None:
    """Remove an image that lost its name to another; one in use stays."""
    left = await api.find_image(image_id)
    if left is not None and not left.names:
        await api.remove_image(image_id)
