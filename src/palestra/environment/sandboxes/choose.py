"""Which sandbox backend a recipe gets on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from palestra.config import SandboxSection
from palestra.environment.images.pull import ImagePuller
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.engine import EngineBackend
from palestra.environment.sandboxes.engine_api import DOCKER, PODMAN
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.local import LocalBackend
from palestra.environment.sandboxes.protocol import SandboxBackend
from palestra.errors import NoIsolation, PalestraError, SandboxUnavailable

CHECK_TIMEOUT_S = 30.0
"""Seconds that the trial start of one backend may take."""

LOCAL_WARNING = (
    "sandbox local isolates nothing: the model's commands run as you, on your files and your "
    "network; only time-outs and ulimit bound them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A backend that was tried and cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The backend that was taken, and those that were tried before it."""

    backend: SandboxBackend
    rejected: tuple[Rejection, ...] = ()

    def describe(self) -> str:
        """One line for people: what was taken, why nothing before it, what it gives up."""
        if self.backend.name == "local":
            return f"warning: {LOCAL_WARNING}"
        text = f"sandbox: {self.backend.name}"
        return f"{text} (not {_listed(self.rejected)})" if self.rejected else text


async def choose_backend(
    section: SandboxSection, *, state_dir: Path, images: Path | None = None
) -> Choice:
    """Make the backend that ``section`` asks for and prove that it works.

    ``auto`` takes the first of bubblewrap, docker and podman whose trial start works.

    Args:
        section: its ``backend``, the folder of unpacked images, the engines' image.
        state_dir: leases, run folders and caches.
        images: the folder of unpacked images where the section names none.

    Raises:
        SandboxUnavailable: the backend does not work on this machine; says what to do.
        NoIsolation: none that ``auto`` may take does; says why, for each.
    """
    folder = section.images or images
    makers: dict[str, Callable[[], SandboxBackend]] = {
        "bubblewrap": lambda: BubblewrapBackend(
            store=ImageStore(folder) if folder is not None else None,
            state_dir=state_dir,
            puller=ImagePuller(ImageStore(folder)) if folder is not None else None,
        ),
        "docker": lambda: EngineBackend(DOCKER, host_image=section.host_image),
        "podman": lambda: EngineBackend(PODMAN, host_image=section.host_image),
        "local": lambda: LocalBackend(state_dir=state_dir),
    }
    if section.backend == "auto":
        return await first_that_works([makers[name]() for name in makers if name != "local"])
    backend = makers[section.backend]()
    await _check(backend, CHECK_TIMEOUT_S)
    return Choice(backend=backend)


async def first_that_works(
    backends: Sequence[SandboxBackend], *, timeout_s: float = CHECK_TIMEOUT_S
) -> Choice:
    """Try ``backends`` in order by a trial start each, which may take ``timeout_s``.

    Raises:
        NoIsolation: none works.
        HostError: something is wrong that no other backend would mend.
    """
    rejected: list[Rejection] = []
    for backend in backends:
        try:
            await _check(backend, timeout_s)
        except SandboxUnavailable as error:
            rejected.append(Rejection(name=backend.name, reason=_short(error)))
        else:
            return Choice(backend=backend, rejected=tuple(rejected))
    raise NoIsolation(f"no sandbox can be started here: {_listed(rejected)}")


async def _check(backend: SandboxBackend, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await backend.check()
    except TimeoutError:
        raise SandboxUnavailable(
            f"{backend.name} did not start a trial sandbox in {timeout_s:g} s"
        ) from None


def _short(error: PalestraError) -> str:
    return " ".join(error.message.split())


def _listed(rejected: Sequence[Rejection]) -> str:
    return "; ".join(f"{item.name}: {item.reason}" for item in rejected)
