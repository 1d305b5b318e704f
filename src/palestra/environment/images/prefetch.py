"""Bringing images in the background, in the order in which they will be needed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType

from palestra.environment.sandboxes.protocol import ImageProgress, OnProgress
from palestra.errors import PalestraError

EnsureImage = Callable[[str, OnProgress], Awaitable[None]]
"""A backend's ``ensure_image``."""


class Prefetcher:
    """Brings images ahead of their episodes; leaving the context stops it.

    A failure is kept to itself: the episode that needs the image asks the backend again
    and gets the error that holds then.

    Args:
        ensure: brings one image; at once when it is there.
        num_at_once: images that are brought at the same time.
    """

    def __init__(self, ensure: EnsureImage, *, num_at_once: int = 2) -> None:
        self._ensure = ensure
        self._num_at_once = num_at_once
        self._waiting: deque[str] = deque()
        self._seen: set[str] = set()
        self._progress: dict[str, ImageProgress] = {}
        self._failures: dict[str, PalestraError] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def progress(self) -> dict[str, ImageProgress]:
        """How far each image is that is being brought now."""
        return dict(self._progress)

    @property
    def failures(self) -> dict[str, PalestraError]:
        """Why an image did not come."""
        return dict(self._failures)

    def want(self, images: Iterable[str]) -> None:
        """Bring ``images``, the first one first, after those wanted before.

        None comes twice, but one that failed is tried again.
        """
        for image in images:
            if image not in self._seen or self._failures.pop(image, None) is not None:
                self._seen.add(image)
                self._waiting.append(image)
        while self._waiting and len(self._running) < self._num_at_once:
            task = asyncio.ensure_future(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def idle(self) -> None:
        """Wait until all that was wanted has come or failed."""
        while self._running:
            await asyncio.wait(self._running)

    async def _work(self) -> None:
        while self._waiting:
            image = self._waiting.popleft()
            try:
                await self._ensure(image, lambda now, image=image: self._note(image, now))  # type: ignore[misc]
            except PalestraError as error:
                self._failures[image] = error
            finally:
                self._progress.pop(image, None)

    def _note(self, image: str, now: ImageProgress) -> None:
        self._progress[image] = now

    async def __aenter__(self) -> Prefetcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop, and wait until what was under way has been given up."""
        self._waiting.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
