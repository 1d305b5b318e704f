"""What a registry says of an image: manifest, index and configuration, read strictly."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from palestra.errors import ImageError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Something that the registry holds: ``digest`` is ``sha256:`` and 64 hex digits."""

    digest: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image for one platform; the bottommost layer first."""

    config: Blob
    layers: tuple[Blob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How an image wants to be run, and the digests of its layers when uncompressed."""

    diff_ids: tuple[str, ...]
    env: Mapping[str, str]
    workdir: str | None
    user: str | None


def architecture() -> str:
    """Of this machine, as images name it."""
    machine = platform.machine()
    return _MACHINES.get(machine, machine)


def parse_manifest(data: bytes, *, image: str) -> Manifest | str:
    """The manifest in ``data``; of an index, the digest of this machine's one.

    Raises:
        ImageError: it is neither, or has nothing for this machine.
    """
    try:
        body = orjson.loads(data)
        if "manifests" in body:
            return _choose(body["manifests"], image)
        return Manifest(config=_blob(body["config"]), layers=tuple(map(_blob, body["layers"])))
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{image}: the registry's manifest cannot be read: {error!r}") from None


def parse_index(data: bytes, *, image: str) -> str:
    """The digest of the only manifest of an OCI layout.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return _digest(orjson.loads(data)["manifests"][-1]["digest"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ImageError(f"{image}: its index cannot be read: {error!r}") from None


def parse_config(data: bytes, *, image: str) -> ImageConfig:
    """The configuration in ``data``.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        body = orjson.loads(data)
        config: dict[str, Any] = body.get("config") or {}
        pairs = (str(item).partition("=") for item in config.get("Env") or ())
        return ImageConfig(
            diff_ids=tuple(map(_digest, body["rootfs"]["diff_ids"])),
            env={name: value for name, _, value in pairs if name},
            workdir=str(config.get("WorkingDir") or "") or None,
            user=str(config.get("User") or "") or None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageError(f"{image}: its configuration cannot be read: {error!r}") from None


def _choose(entries: list[dict[str, Any]], image: str) -> str:
    wanted = architecture()
    for entry in entries:
        found = entry.get("platform") or {}
        if found.get("os") == "linux" and found.get("architecture") == wanted:
            return _digest(entry["digest"])
    raise ImageError(f"{image} has no variant for linux/{wanted}")


def _blob(entry: Mapping[str, Any]) -> Blob:
    num_bytes = int(entry["size"])
    if num_bytes < 0:
        raise ValueError(f"a blob of {num_bytes} bytes")
    return Blob(digest=_digest(entry["digest"]), num_bytes=num_bytes)


def _digest(value: object) -> str:
    # It becomes part of a path.
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"{value!r} is no sha256 digest")
    return value
