"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from palestra.errors import CheckpointError

TEMPORARY_PREFIX = ".tmp-"
"""Folders of this name are unfinished or on their way out; only their writer reads them."""


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that becomes it when the block succeeds.

    Everything is on the disk before the name is. A ``target`` that is already there is
    replaced; on any failure it stays as it was and the temporary folder is removed.

    Raises:
        CheckpointError: the disk is full, there is no permission, or the like.
    """
    temporary = _temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        _swap_in(temporary, target)
        _sync(target.parent)
    # torch.save reports a failed write as RuntimeError, safetensors as its own error.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard_folder(folder: Path) -> None:
    """Remove a folder so that a crash halfway leaves nothing under its name.

    Raises:
        OSError: it cannot be renamed.
    """
    temporary = _temporary_name(folder)
    folder.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(folder: Path) -> Path:
    return folder.parent / f"{TEMPORARY_PREFIX}{folder.name}-{uuid.uuid4().hex[:8]}"


def _swap_in(temporary: Path, target: Path) -> None:
    # rename() replaces no folder that holds something, so the old one steps aside.
    if not target.exists():
        temporary.rename(target)
        return
    old = _temporary_name(target)
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _cannot_write(target: Path, error: Exception) -> CheckpointError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full = full or "No space left" in str(error)
    hint = "free some space or choose another folder" if full else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return CheckpointError(f"cannot write {target}: {reason.splitlines()[0]}", hint=hint)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
