"""Bringing many images, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from palestra.environment.images.prefetch import EnsureImage
from palestra.environment.sandboxes.protocol import ImageProgress
from palestra.errors import HostError, SandboxError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFailure:
    """Why one image did not come."""

    image: str
    error: SandboxError


async def bring_all(
    ensure: EnsureImage,
    images: Sequence[str],
    *,
    num_at_once: int,
    on_progress: Callable[[str, ImageProgress], None],
    on_done: Callable[[str, SandboxError | None], None],
) -> tuple[ImageFailure, ...]:
    """Bring ``images``; return those that did not come, and go on after them.

    Args:
        ensure: brings one; at once when it is there.
        images: their names, no two the same.
        num_at_once: how many at the same time.
        on_progress: is told how far an image is.
        on_done: is told that an image has come, or why it has not.

    Raises:
        HostError: the machine refuses (a full disk, no skopeo), which ends all of it.
    """
    gate = asyncio.Semaphore(num_at_once)
    failures: list[ImageFailure] = []

    async def bring(image: str) -> None:
        async with gate:
            try:
                await ensure(image, lambda now: on_progress(image, now))
            except SandboxError as error:
                failures.append(ImageFailure(image=image, error=error))
                on_done(image, error)
            else:
                on_done(image, None)

    refusals: list[HostError] = []
    try:
        async with asyncio.TaskGroup() as group:
            for image in images:
                group.create_task(bring(image))
    except* HostError as several:
        refusals += [error for error in several.exceptions if isinstance(error, HostError)]
    if refusals:
        raise refusals[0]
    return tuple(failures)
