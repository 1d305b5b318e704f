"""Where things lie on this machine by default; the only reader of these variables."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


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
    # A service user may have no home; the user id keeps users apart.
    return folder if writable else Path(tempfile.gettempdir()) / f"palestra-{os.getuid()}"
