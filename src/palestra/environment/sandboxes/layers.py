"""A cache of read-only overlay layers, each built once and shared by all sandboxes."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path

from palestra.environment.sandboxes.repository import write_repository
from palestra.errors import HostError, ImageError
from palestra.records import TaskFile

_TEMPORARY = ".new-"
_SETTLED_S = 600.0


class LayerCache:
    """Layers by key, each in a folder of its own; safe for several processes at once.

    Args:
        folder: where the layers lie; on a local file system.
        max_layers: above this, :meth:`evict` removes the longest unused.
    """

    def __init__(self, folder: Path, *, max_layers: int = 4096) -> None:
        self._folder = folder
        self._max_layers = max_layers

    def get(self, key: str, build: Callable[[Path], object]) -> Path:
        """The layer of ``key``; ``build`` fills an empty folder if there is none yet.

        Raises:
            HostError: it cannot be written.
        """
        layer = self._folder / key
        try:
            if not _touch(layer):
                self._build(layer, build)
        except OSError as error:
            raise HostError.from_os(
                error, doing=f"cannot prepare a sandbox layer in {layer.parent}"
            ) from error
        return layer

    def repository(self, workdir: str, files: Sequence[TaskFile]) -> Path:
        """The layer with ``files`` as a git repository at ``workdir``.

        Raises:
            ImageError: the files cannot all exist.
            HostError: they cannot be written.
        """
        key = repository_key(workdir, files)

        def build(folder: Path) -> None:
            root = folder / workdir.strip("/")
            root.mkdir(parents=True, exist_ok=True)
            write_repository(root, files)

        try:
            return self.get(key, build)
        except ValueError as error:
            raise ImageError(f"the task's files make no repository: {error}") from None

    def evict(self, in_use: Container[str]) -> int:
        """Remove the longest unused layers above the bound; return how many.

        Args:
            in_use: keys that living sandboxes name in their leases. A layer that was
                asked for a moment ago is kept as well: its lease may be on its way.
        """
        if not self._folder.is_dir():
            return 0
        now = time.time()
        aged = sorted(
            (entry.stat(follow_symlinks=False).st_mtime, entry.name)
            for entry in os.scandir(self._folder)
        )
        surplus = len(aged) - self._max_layers
        num_removed = 0
        for used_at_s, name in aged:
            abandoned = name.startswith(_TEMPORARY)
            if now - used_at_s < _SETTLED_S or (num_removed >= surplus and not abandoned):
                continue
            if name not in in_use:
                self._remove(name)
                num_removed += 1
        return num_removed

    def _remove(self, name: str) -> None:
        # Renamed first: nobody may find a layer that is half gone.
        doomed = self._folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):
            (self._folder / name).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _build(self, layer: Path, build: Callable[[Path], object]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
        temporary.mkdir(mode=0o755)
        temporary.chmod(0o755)  # it becomes the sandbox's /, whatever the umask
        try:
            build(temporary)
            temporary.rename(layer)
        except OSError:
            # Another process may have been first; its layer is as good as ours.
            if not layer.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def repository_key(workdir: str, files: Sequence[TaskFile]) -> str:
    """A name for the repository layer that tells apart everything that makes it."""
    digest = hashlib.sha256(workdir.encode())
    for file in files:
        for part in (file.path, str(file.executable), file.text):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(data) + data)
    return f"repo-{digest.hexdigest()[:24]}"


def _touch(layer: Path) -> bool:
    try:
        os.utime(layer)
    except FileNotFoundError:
        return False
    return True
