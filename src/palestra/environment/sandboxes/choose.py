"""Which sandbox backend a recipe gets on this machine."""

from __future__ import annotations

from pathlib import Path

from palestra.config import SandboxSection
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxBackend
from palestra.errors import SandboxUnavailable


async def choose_backend(
    section: SandboxSection, *, state_dir: Path, images: Path | None = None
) -> SandboxBackend:
    """Make the backend that ``section`` asks for and prove that it works.

    Args:
        section: its ``backend`` and the folder of unpacked images.
        state_dir: leases, run folders and caches.
        images: the folder of unpacked images where the section names none.

    Raises:
        SandboxUnavailable: it does not work on this machine; says what to do.
    """
    if section.backend not in ("auto", "bubblewrap"):
        raise SandboxUnavailable(
            f"the sandbox backend {section.backend} is not available in this version",
            hint="use sandbox.backend = auto or bubblewrap",
        )
    folder = section.images or images
    backend = BubblewrapBackend(
        store=ImageStore(folder) if folder is not None else None, state_dir=state_dir
    )
    await backend.check()
    return backend
