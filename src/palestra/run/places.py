"""Where things lie on this machine by default; the only reader of these variables."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from palestra.errors import HostError


def images_folder() -> Path:
    """The store of unpacked images: ``$PALESTRA_IMAGES``, else below the user's cache."""
    named = os.environ.get("PALESTRA_IMAGES")
    return Path(named) if named else _cache() / "images"


def state_folder() -> Path:
    """Leases and run directories of sandboxes: ``$PALESTRA_STATE``, else below the user's cache.

    All servers of a user share it, so that one finds what another left behind.
    """
    named = os.environ.get("PALESTRA_STATE")
    return Path(named) if named else _cache() / "sandboxes"


def forge_folder() -> Path:
    """Checkouts of projects and journals of the forge: ``$PALESTRA_FORGE``, else the cache."""
    named = os.environ.get("PALESTRA_FORGE")
    return Path(named) if named else _cache() / "forge"


def deployment_folder() -> Path:
    """What ``palestra up`` keeps: ``$PALESTRA_DEPLOYMENT``, else below the user's state."""
    named = os.environ.get("PALESTRA_DEPLOYMENT")
    if named:
        return Path(named)
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "palestra" / "deployment"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111
    folder = home / "palestra"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        writable = False
    else:
        writable = os.access(folder, os.W_OK)
    return folder if writable else _private_folder()


def _private_folder() -> Path:
    # A service user may have no home. The name can be guessed, so somebody else may
    # have made the folder: it is used only if it is ours and closed to others.
    folder = Path(tempfile.gettempdir()) / f"palestra-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot make {folder}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HostError(
            f"{folder} is not a private folder of this user",
            hint="set $PALESTRA_STATE and $PALESTRA_IMAGES to folders of your own",
        )
    return folder
