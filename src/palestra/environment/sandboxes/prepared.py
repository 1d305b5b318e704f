"""Layers that lie over unpacked images and hide what their repositories must not show.

They lie beside the images in the store, each with its seal: ``history/KEY`` and
``history/KEY.json``. The seal is written last, so a layer without one was never finished.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from palestra.environment.images.locks import locked
from palestra.environment.sandboxes.history import HIDE_TIMEOUT_S, PROCEDURE, Seal
from palestra.environment.sandboxes.images import UnpackedImage
from palestra.environment.sandboxes.unpack import OPAQUE_XATTR
from palestra.errors import HostError, UnverifiedHistory

_NEW = ".new-"
_OVERLAY_XATTRS = "user.overlay."
_LOOKED_AT = ("", ".git", ".git/HEAD", ".git/index", ".git/packed-refs", ".git/objects/pack")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedLayer:
    """A finished layer and what a sandbox on it must look like."""

    folder: Path
    seal: Seal


class PreparedLayers:
    """The prepared layers of one image store; safe for several processes at once.

    Args:
        store: the store's folder.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store / "history"

    async def get(
        self, key: str, build: Callable[[Path], Awaitable[Seal]], *, identity: str
    ) -> PreparedLayer:
        """The layer of ``key``; ``build`` fills an empty folder if there is none yet.

        Args:
            key: says all that makes the layer.
            build: fills the folder and tells its seal.
            identity: of the image that it is made from, for :meth:`drop_orphans`.

        Raises:
            HostError: it cannot be written, or somebody else works on it for too long.
            UnverifiedHistory: its seal is broken.
        """
        found = self._find(key)
        if found is not None:
            return found
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Whoever dies in the middle loses the lock, and the next does it again.
            async with locked(self._folder / f"{key}.lock", timeout_s=HIDE_TIMEOUT_S):
                return self._find(key) or await self._make(key, build, identity)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot prepare an image") from error

    def drop_orphans(self, identities: Collection[str], in_use: Collection[str]) -> int:
        """Remove the layers that no image of the store can use any more; return how many.

        Args:
            identities: of the images that are in the store (:func:`identity_of`).
            in_use: keys of layers on which live sandboxes stand.
        """
        num_dropped = 0
        for owner in self._folder.glob("*.image"):
            key = owner.stem
            if key not in in_use and not self._is_wanted(key, owner.read_text(), identities):
                for path in (self._seal(key), owner, self._folder / f"{key}.lock"):
                    path.unlink(missing_ok=True)
                self._remove(self._folder / key)
                num_dropped += 1
        for left in self._folder.glob(f"{_NEW}*"):
            if time.time() - left.stat().st_mtime > 2 * HIDE_TIMEOUT_S:
                self._remove(left)
        return num_dropped

    def _is_wanted(self, key: str, identity: str, identities: Collection[str]) -> bool:
        try:
            found = self._find(key)
        except UnverifiedHistory:
            return False
        return found is not None and found.seal.procedure == PROCEDURE and identity in identities

    def _remove(self, layer: Path) -> None:
        # Renamed first: nobody may find a layer that is half gone.
        doomed = self._folder / f"{_NEW}{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            layer.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _find(self, key: str) -> PreparedLayer | None:
        try:
            seal = Seal.from_bytes(self._seal(key).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnverifiedHistory(f"the seal of a prepared image: {error}") from error
        return PreparedLayer(folder=self._folder / key, seal=seal)

    async def _make(
        self, key: str, build: Callable[[Path], Awaitable[Seal]], identity: str
    ) -> PreparedLayer:
        layer, temporary = self._folder / key, self._folder / f"{_NEW}{key}"
        for left in (layer, temporary):
            if left.exists():
                await asyncio.to_thread(shutil.rmtree, left)
        temporary.mkdir(mode=0o755)
        temporary.chmod(0o755)  # it becomes the sandbox's /, whatever the umask
        try:
            seal = await build(temporary)
            temporary.rename(layer)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)
            raise
        (self._folder / f"{key}.image").write_text(identity)
        draft = self._folder / f"{_NEW}{key}.json"
        draft.write_bytes(seal.to_bytes())
        draft.rename(self._seal(key))
        return PreparedLayer(folder=layer, seal=seal)

    def _seal(self, key: str) -> Path:
        return self._folder / f"{key}.json"


async def copy_written(source: Path, target: Path) -> None:
    """Copy what a sandbox wrote, as an overlay keeps it, into the layer ``target``.

    Raises:
        HostError: it cannot be copied.
    """
    # It never follows a link that it finds.
    copying = await asyncio.create_subprocess_exec(
        *("cp", "-a", "--", f"{source}/.", str(target)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await copying.communicate()
    except asyncio.CancelledError:
        copying.kill()
        await copying.wait()
        raise
    if copying.returncode != 0:
        text = said.decode("utf-8", "replace").strip()[-400:]
        raise HostError(f"cannot keep a prepared image: {text}")
    await asyncio.to_thread(_keep_opaque_only, target)


def identity_of(image: UnpackedImage) -> str:
    """A word for what ``image`` is made of: its digest, or for a folder what is seen from outside.

    A folder's files are too many to read. Its repository's outermost files tell when
    somebody has worked in it, and the folders' own inodes when it was replaced.
    """
    if image.digest is not None:
        return image.digest
    seen = hashlib.sha256(str(image.rootfs).encode())
    for name in _LOOKED_AT:
        path = image.rootfs / (image.workdir or "/testbed").lstrip("/") / name
        with suppress(OSError):
            stat = path.stat()
            seen.update(f"{name} {stat.st_ino} {stat.st_mtime_ns} {stat.st_size}\n".encode())
    return f"folder:{seen.hexdigest()[:24]}"


def _keep_opaque_only(layer: Path) -> None:
    """Drop what the overlay notes for itself in the layer that it writes to."""
    for folder, _, _ in os.walk(layer):
        for name in os.listxattr(folder):
            if name.startswith(_OVERLAY_XATTRS) and name != OPAQUE_XATTR:
                os.removexattr(folder, name)
