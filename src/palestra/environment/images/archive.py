"""An image of the store as one archive that engines load: layers, configuration, manifest."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from palestra.environment.images.manifest import architecture
from palestra.environment.images.tarball import Owner, layer_tar
from palestra.environment.sandboxes.images import UnpackedImage
from palestra.errors import ImageError

CONTENT_LABEL = "palestra.content"
"""Says in an image that was sent what it was made of."""

_END = b"\0" * (2 * tarfile.BLOCKSIZE)
_EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    folder: Path
    owner: Owner
    sha256: str
    num_bytes: int

    @property
    def file_name(self) -> str:
        return f"{self.sha256}.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageArchive:
    """What is to be sent of one image.

    Attributes:
        name: of the image, with its tag.
        layers: the bottommost first.
        settings: environment, directory and user, as an image's configuration has them.
    """

    name: str
    layers: tuple[_Layer, ...]
    settings: dict[str, Any]

    @classmethod
    def of(cls, image: UnpackedImage, *, on_read: Callable[[int], None]) -> ImageArchive:
        """Read all of ``image``, since an archive has to name what its layers hash to.

        Args:
            image: whose files do not change meanwhile.
            on_read: is told how many bytes more have been read; may raise to stop.

        Raises:
            ImageError: a file cannot be in an image.
            OSError: a file cannot be read.
        """
        uid, gid = image.user_ids
        owner = Owner(uid=uid, gid=gid)
        return cls(
            name=image.name,
            layers=tuple(_measured(folder, owner, on_read) for folder in image.layers),
            settings={
                "Env": [f"{name}={value}" for name, value in sorted(image.env.items())],
                "WorkingDir": image.workdir or "",
                "User": f"{uid}:{gid}" if (uid, gid) != (0, 0) else "",
            },
        )

    @property
    def content(self) -> str:
        """A digest of all that the image is, but for its name."""
        parts = [self.settings, [layer.sha256 for layer in self.layers]]
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Of all layers."""
        return sum(layer.num_bytes for layer in self.layers)

    def pieces(self) -> Iterator[bytes]:
        """The archive, in pieces.

        Raises:
            ImageError: a file has changed since it was read the first time.
            OSError: a file cannot be read.
        """
        for layer in {layer.sha256: layer for layer in self.layers}.values():
            yield _header(layer.file_name, layer.num_bytes)
            num_bytes = 0
            for piece in layer_tar(layer.folder, layer.owner):
                yield piece
                num_bytes += len(piece)
            if num_bytes != layer.num_bytes:
                raise ImageError(f"{layer.folder} changed while it was read")
        config = orjson.dumps(self._config())
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = {
            "Config": config_name,
            "RepoTags": [self.name],
            "Layers": [layer.file_name for layer in self.layers],
        }
        yield from _file(config_name, config)
        yield from _file("manifest.json", orjson.dumps([manifest]))
        yield _END

    def _config(self) -> dict[str, Any]:
        return {
            "architecture": architecture(),
            "os": "linux",
            "created": _EPOCH,
            "config": {**self.settings, "Labels": {CONTENT_LABEL: self.content}},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{layer.sha256}" for layer in self.layers],
            },
            "history": [{"created": _EPOCH} for _ in self.layers],
        }


def _measured(folder: Path, owner: Owner, on_read: Callable[[int], None]) -> _Layer:
    digest, num_bytes = hashlib.sha256(), 0
    for piece in layer_tar(folder, owner):
        digest.update(piece)
        num_bytes += len(piece)
        on_read(len(piece))
    return _Layer(folder=folder, owner=owner, sha256=digest.hexdigest(), num_bytes=num_bytes)


def _header(name: str, num_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    return info.tobuf(tarfile.GNU_FORMAT)


def _file(name: str, data: bytes) -> Iterator[bytes]:
    yield _header(name, len(data))
    yield data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)
