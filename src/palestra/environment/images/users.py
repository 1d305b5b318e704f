"""The numbers behind an image's ``User``, from the image's own files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from palestra.environment.images.layers import is_whiteout
from palestra.errors import ImageError

_MAX_BYTES = 1 << 20


def resolve_user(user: str | None, layers: tuple[Path, ...], *, image: str) -> str | None:
    """``user`` (``name``, ``uid``, each with or without ``:group``) as ``uid:gid``.

    Args:
        user: as the image's configuration says; ``None``: root.
        layers: of the image, the bottommost first.
        image: its name, for messages.

    Raises:
        ImageError: the image knows no such user or group.
    """
    if not user:
        return None
    name, _, group = user.partition(":")
    uid, gid = _user(name, layers, image)
    if group:
        gid = int(group) if group.isdecimal() else _group(group, layers, image)
    return f"{uid}:{gid}"


def _user(name: str, layers: tuple[Path, ...], image: str) -> tuple[int, int]:
    for row in _rows("passwd", layers):
        if len(row) > 3 and name in row[:1] + row[2:3] and row[2].isdecimal():
            return int(row[2]), int(row[3]) if row[3].isdecimal() else 0
    if name.isdecimal():
        return int(name), 0
    if name == "root":
        return 0, 0
    raise ImageError(f"{image} wants to run as {name!r}, whom its /etc/passwd does not know")


def _group(name: str, layers: tuple[Path, ...], image: str) -> int:
    for row in _rows("group", layers):
        if len(row) > 2 and row[0] == name and row[2].isdecimal():
            return int(row[2])
    raise ImageError(f"{image} wants the group {name!r}, which its /etc/group does not know")


def _rows(name: str, layers: tuple[Path, ...]) -> Iterator[list[str]]:
    for layer in reversed(layers):
        if (layer / "etc").is_symlink():
            return  # it could lead out of the image
        path = layer / "etc" / name
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if is_whiteout(found) or not stat.S_ISREG(found.st_mode):
            return
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8", "replace")
        yield from (line.split(":") for line in text.splitlines())
        return
