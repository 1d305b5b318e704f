"""Telling the environment which images come next, so that no episode waits for its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType

from palestra.errors import PalestraError
from palestra.events import EventSink, NullEvents
from palestra.records import HOST_IMAGE, Task

Prefetch = Callable[[Sequence[str]], Awaitable[None]]
"""Asks for images, the first one first, and returns before they have come."""

_TIMEOUT_S = 60.0


class ImagesAhead:
    """Asks for the images of tasks in the background; an async context manager.

    Nobody waits for it and nothing fails because of it: an episode whose image was not
    brought ahead brings it itself.

    Args:
        prefetch: asks the environment.
        timeout_s: seconds that one asking may take.
        events: told when an asking failed (``prefetch.failed``).
    """

    def __init__(
        self,
        prefetch: Prefetch,
        *,
        timeout_s: float = _TIMEOUT_S,
        events: EventSink | None = None,
    ) -> None:
        self._prefetch = prefetch
        self._timeout_s = timeout_s
        self._events = events or NullEvents()
        self._asked: set[str] = set()
        self._waiting: list[str] = []
        self._asking: asyncio.Task[None] | None = None

    def want(self, tasks: Iterable[Task]) -> None:
        """Ask for the images of ``tasks``, in this order, each once; returns at once."""
        images = dict.fromkeys(task.image for task in tasks if task.image != HOST_IMAGE)
        fresh = [image for image in images if image not in self._asked]
        self._asked.update(fresh)
        self._waiting += fresh
        if self._waiting and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask(), name="images ahead")

    async def aclose(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def __aenter__(self) -> ImagesAhead:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self) -> None:
        while self._waiting:
            images, self._waiting = self._waiting, []
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._prefetch(images)
            except (PalestraError, OSError) as error:  # TimeoutError is an OSError
                # To be asked for again when they come up the next time.
                self._asked.difference_update(images)
                self._events.emit(
                    "prefetch.failed", images=images, error=str(error) or type(error).__name__
                )
