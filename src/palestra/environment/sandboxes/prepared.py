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
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from palestra.environment.images.locks import locked
from palestra.environment.sandboxes.history import HIDE_TIMEOUT_S, Seal
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
        self, key: str, build: Callable[[Path], Awaitable[Seal]], *, image: str
    ) -> PreparedLayer:
        """The layer of ``key``; ``build`` fills an empty folder if there is none yet.

        Args:
            key: says all that makes the layer.
            build: fills the folder and tells its seal.
            image: whose layer it is, for :meth:`drop_orphans`.

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
                return self._find(key) or await self._make(key, build, image)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot prepare an image") from error

    def drop_orphans(self, images: Collection[str], in_use: Collection[str]) -> int:
        """Remove the layers of images that are not in the store any more; return how many.

        Args:
            images: names of those that are.
            in_use: keys of layers on which live sandboxes stand.
        """
        num_dropped = 0
        for owner in self._folder.glob("*.image"):
            key = owner.stem
            if owner.read_text(encoding="utf-8") not in images and key not in in_use:
                for path in (self._seal(key), owner, self._folder / f"{key}.lock"):
                    path.unlink(missing_ok=True)
                doomed = self._folder / f"{_NEW}{secrets.token_hex(8)}"
                with suppress(FileNotFoundError):
                    (self._folder / key).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
                num_dropped += 1
        return num_dropped

    def _find(self, key: str) -> PreparedLayer | None:
        try:
            seal = Seal.from_bytes(self._seal(key).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnverifiedHistory(f"the seal of a prepared image: {error}") from error
        return PreparedLayer(folder=self._folder / key, seal=seal)

    async def _make(
        self, key: str, build: Callable[[Path], Awaitable[Seal]], image: str
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
        (self._folder / f"{key}.image").write_text(image, encoding="utf-8")
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
