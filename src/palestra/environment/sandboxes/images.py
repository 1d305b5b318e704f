"""Unpacked images by name: one JSON file each, and the root file systems we unpacked."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from palestra.environment.sandboxes.unpack import unpack_tar
from palestra.errors import HostError, ImageError

_MAX_FILE_NAME = 180
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.()-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedImage:
    """A root file system in a folder, and how its commands are to be run."""

    name: str
    rootfs: Path
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    """``uid`` or ``uid:gid`` in numbers, or ``None`` for root."""

    def __post_init__(self) -> None:
        self.user_ids  # noqa: B018 - a user we cannot apply is refused here
        for name, value in self.env.items():
            if not _ENV_NAME.fullmatch(name) or "\0" in value:
                raise ImageError(f"{self.name}: {name!r} is no name of an environment variable")
        if self.workdir is not None and not self.workdir.startswith("/"):
            raise ImageError(f"{self.name}: workdir {self.workdir!r} is not absolute")

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
                hint=f"palestra images add {name} ROOTFS (the store is {self._folder})",
            )
        image = self._read(path)
        if not image.rootfs.is_dir():
            raise ImageError(f"the root file system of {name} is gone: {image.rootfs}")
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
            rootfs=rootfs.resolve(),
            env=dict(env or {}),
            workdir=workdir,
            user=user,
        )
        try:
            self._write(image)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write to the image store") from error
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
                rootfs=Path(entry["rootfs"]),
                env={str(key): str(value) for key, value in entry["env"].items()},
                workdir=entry["workdir"],
                user=entry["user"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(
                f"the image store's entry {path} is broken: {error!r}", hint="remove it"
            ) from None

    def _write(self, image: UnpackedImage) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = {
            "name": image.name,
            "rootfs": str(image.rootfs),
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
