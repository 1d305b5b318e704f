"""Unpacked images by name: one JSON file each, and the root file systems we unpacked."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from palestra.environment.sandboxes.unpack import unpack_tar
from palestra.errors import HostError, ImageError

_MAX_FILE_NAME = 180
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.()-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedImage:
    """A root file system in one folder or several layers, and how its commands are to be run."""

    name: str
    layers: tuple[Path, ...]
    """The bottommost first; a registered folder or an unpacked tarball is one."""
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    """``uid`` or ``uid:gid`` in numbers, or ``None`` for root."""
    sources: tuple[Path, ...] = ()
    """Layers of the store that must stay with it: its own, and those merged into one of them."""
    digest: str | None = None
    """Of the configuration, which stands for all that the image is; ``None``: not pulled."""
    num_bytes: int | None = None
    """What its layers take on the disk, shared ones included; ``None``: not pulled."""
    added_at_s: float | None = None
    """Unix time."""

    def __post_init__(self) -> None:
        self.user_ids  # noqa: B018 - a user we cannot apply is refused here
        for name, value in self.env.items():
            if not _ENV_NAME.fullmatch(name) or "\0" in value:
                raise ImageError(f"{self.name}: {name!r} is no name of an environment variable")
        if self.workdir is not None and not self.workdir.startswith("/"):
            raise ImageError(f"{self.name}: workdir {self.workdir!r} is not absolute")

    @property
    def rootfs(self) -> Path:
        """The bottommost layer; all of the image, where it is one folder."""
        return self.layers[0]

    def has_program(self, name: str) -> bool:
        """Whether it seems to have a program (nothing is run)."""
        return any(_shows(self.layers, f"{folder}/{name}") for folder in ("bin", "usr/bin"))

    @property
    def user_ids(self) -> tuple[int, int]:
        """The uid and gid that commands see themselves as."""
        if self.user in (None, "", "root"):
            return 0, 0
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", str(self.user))
        if not match:
            raise ImageError(
                f"{self.name}: user {self.user!r} is not a number", hint="give it as uid or uid:gid"
            )
        return int(match[1]), int(match[2] or match[1])


class ImageStore:
    """The unpacked images below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where entries lie, and below it what was pulled and unpacked."""
        return self._folder

    @property
    def lock(self) -> Path:
        """Held shared by who adds layers, and alone by who removes some."""
        return self._folder / "locks" / "store"

    def layer(self, diff_id: str) -> Path:
        """Where the layer of that digest (of its uncompressed tarball) lies or will lie."""
        # Short, since all paths of a stack must fit into one page.
        return self._folder / "l" / diff_id.removeprefix("sha256:")[:24]

    def all(self) -> tuple[UnpackedImage, ...]:
        """All images, by name; broken entries are left out."""
        found = []
        for path in self._folder.glob("*.json"):
            with suppress(ImageError):
                found.append(self._read(path))
        return tuple(sorted(found, key=lambda image: image.name))

    def has(self, name: str) -> bool:
        """Whether the image of that name can be started from."""
        try:
            self.resolve(name)
        except ImageError:
            return False
        return True

    def used_at_s(self, name: str) -> float:
        """When the image was last started from or added, in Unix time."""
        return self._entry(canonical_name(name)).stat().st_mtime

    def forget(self, name: str) -> None:
        """Remove the entry, not what it is made of."""
        self._entry(canonical_name(name)).unlink(missing_ok=True)

    def names(self) -> tuple[str, ...]:
        """The names of all images, sorted."""
        if not self._folder.is_dir():
            return ()
        return tuple(sorted(self._read(path).name for path in self._folder.glob("*.json")))

    def resolve(self, name: str) -> UnpackedImage:
        """The image of that name; the tag ``latest`` is implied.

        Raises:
            ImageError: it is unknown, its entry is broken or its folder is gone.
        """
        path = self._entry(canonical_name(name))
        if not path.is_file():
            raise ImageError(
                f"no unpacked image is called {name}",
                hint=f"palestra images add {name} ROOTFS, or palestra images pull TASKS "
                f"(the store is {self._folder})",
            )
        image = self._read(path)
        for layer in image.layers:
            if not layer.is_dir():
                raise ImageError(f"the root file system of {name} is gone: {layer}")
        with suppress(OSError):  # the store may be somebody else's
            os.utime(path)
        return image

    def add(
        self,
        name: str,
        rootfs: Path,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
    ) -> UnpackedImage:
        """Register a folder, which stays where it is, as the image ``name``.

        Raises:
            ImageError: the folder is no root file system, or a setting cannot be applied.
            HostError: the store cannot be written.
        """
        if not (rootfs / "bin").is_dir() and not (rootfs / "usr/bin").is_dir():
            raise ImageError(f"{rootfs} is no root file system: it has no /bin")
        image = UnpackedImage(
            name=canonical_name(name),
            layers=(rootfs.resolve(),),
            env=dict(env or {}),
            workdir=workdir,
            user=user,
            added_at_s=time.time(),
        )
        try:
            self._write(image)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write to the image store") from error
        return image

    def add_pulled(
        self,
        name: str,
        layers: tuple[Path, ...],
        *,
        sources: tuple[Path, ...],
        env: Mapping[str, str],
        workdir: str | None,
        user: str | None,
        digest: str,
        num_bytes: int,
    ) -> UnpackedImage:
        """Register layers of this store as the image ``name``; the lower ones may lie elsewhere.

        Raises:
            ImageError: there is no layer, or a setting cannot be applied.
            OSError: the store cannot be written.
        """
        if not layers:
            raise ImageError(f"{name} has no layers, so nothing could run in it")
        image = UnpackedImage(
            name=name,
            layers=tuple(layer.absolute() for layer in layers),
            sources=tuple(layer.absolute() for layer in sources),
            env=env,
            workdir=workdir,
            user=user,
            digest=digest,
            num_bytes=num_bytes,
            added_at_s=time.time(),
        )
        self._write(image)
        return image

    def import_tar(
        self,
        name: str,
        tar: Path,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
    ) -> UnpackedImage:
        """Unpack the tarball of a root file system, as from ``docker export``, and register it.

        An image of the same name that was unpacked before is replaced; its sandboxes
        must have ended.

        Raises:
            ImageError: the tarball is broken, escapes its folder or has no /bin.
            HostError: the store cannot be written.
        """
        stem = hashlib.sha256(canonical_name(name).encode()).hexdigest()[:12]
        rootfs = self._folder / f"{stem}-{secrets.token_hex(4)}"
        try:
            rootfs.mkdir(parents=True, mode=0o755)
            unpack_tar(tar, rootfs)
            image = self.add(name, rootfs, env=env, workdir=workdir, user=user)
        except BaseException as error:
            shutil.rmtree(rootfs, ignore_errors=True)
            if isinstance(error, OSError):
                raise HostError.from_os(error, doing=f"cannot unpack {name}") from error
            raise
        for old in self._folder.glob(f"{stem}-*"):
            if old != rootfs:
                shutil.rmtree(old, ignore_errors=True)
        return image

    def _entry(self, name: str) -> Path:
        file_name = quote(name, safe="")
        if len(file_name) > _MAX_FILE_NAME:
            file_name = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / f"{file_name}.json"

    def _read(self, path: Path) -> UnpackedImage:
        try:
            entry: dict[str, Any] = orjson.loads(path.read_bytes())
            return UnpackedImage(
                name=str(entry["name"]),
                layers=self._layers(entry),
                sources=tuple(self._placed(item) for item in entry.get("sources", ())),
                digest=entry.get("digest"),
                num_bytes=entry.get("num_bytes"),
                added_at_s=entry.get("added_at_s"),
                env={str(key): str(value) for key, value in entry["env"].items()},
                workdir=entry["workdir"],
                user=entry["user"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(
                f"the image store's entry {path} is broken: {error!r}", hint="remove it"
            ) from None

    def _layers(self, entry: Mapping[str, Any]) -> tuple[Path, ...]:
        if "layers" in entry:
            return tuple(self._placed(item) for item in entry["layers"])
        return (Path(entry["rootfs"]),)

    def _placed(self, item: str) -> Path:
        """A layer of the store by its name, or a folder elsewhere that one stands on."""
        return Path(item) if item.startswith("/") else self.layer(item)

    def _named(self, layer: Path) -> str:
        # By name, so that a store can be moved.
        is_ours = layer.parent == (self._folder / "l").absolute()
        return layer.name if is_ours else str(layer)

    def _write(self, image: UnpackedImage) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = {
            "name": image.name,
            **(
                {
                    "layers": [self._named(layer) for layer in image.layers],
                    "sources": [self._named(layer) for layer in image.sources],
                    "digest": image.digest,
                    "num_bytes": image.num_bytes,
                }
                if image.digest is not None
                else {"rootfs": str(image.rootfs)}
            ),
            "added_at_s": image.added_at_s,
            "env": dict(image.env),
            "workdir": image.workdir,
            "user": image.user,
        }
        temporary = self._folder / f".new-{os.getpid()}-{secrets.token_hex(4)}"
        temporary.write_bytes(orjson.dumps(entry, option=orjson.OPT_INDENT_2))
        temporary.rename(self._entry(image.name))


def canonical_name(name: str) -> str:
    """``name`` with its tag; the implied one is ``latest``.

    Raises:
        ImageError: it is empty or holds what no image name can.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]*", name):
        raise ImageError(f"{name!r} is no name of an image")
    last = name.rsplit("/", 1)[-1]
    return name if ":" in last or "@" in last else f"{name}:latest"


def is_on_loopback(name: str) -> bool:
    """Whether the image's name begins with a registry of this machine, which may speak HTTP."""
    return _LOOPBACK.fullmatch(name.split("/", 1)[0]) is not None


def _shows(layers: tuple[Path, ...], path: str) -> bool:
    """Whether the uppermost layer that speaks of ``path`` has it, and not its whiteout."""
    for layer in reversed(layers):
        try:
            mode = (layer / path).lstat().st_mode
        except OSError:
            continue
        return not stat.S_ISCHR(mode)
    return False
