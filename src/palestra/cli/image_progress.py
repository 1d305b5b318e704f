"""What ``palestra images pull`` shows: each image and all of them."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from palestra.cli.terminal import PLAIN_INTERVAL_S, say
from palestra.environment.sandboxes.protocol import ImageProgress
from palestra.errors import SandboxError


class PullView:
    """A bar for each image on a terminal, a line now and then elsewhere; all on stderr."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self._num_done = 0
        self._now: dict[str, ImageProgress] = {}
        self._rows: dict[str, TaskID] = {}
        self._said_at_s = time.monotonic()
        console = Console(stderr=True)
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )

    def progress(self, image: str, now: ImageProgress) -> None:
        """Show how far ``image`` is."""
        self._now[image] = now
        if self._bars is not None:
            row = self._rows.get(image)
            if row is None:
                row = self._rows[image] = self._bars.add_task(image, total=now.total_bytes)
            self._bars.update(row, completed=now.done_bytes, total=now.total_bytes)
        elif time.monotonic() - self._said_at_s > PLAIN_INTERVAL_S:
            self._said_at_s = time.monotonic()
            say(self._total())
            for name, one in self._now.items():
                say(f"  {name}: {_share(one)}")

    def done(self, image: str, error: SandboxError | None) -> None:
        """Say that ``image`` has come, or why it has not."""
        self._num_done += 1
        self._now.pop(image, None)
        row = self._rows.pop(image, None)
        if self._bars is not None and row is not None:
            self._bars.remove_task(row)
        mark = f"{self._num_done}/{self._num_images}"
        say(f"{mark} {image}" if error is None else f"{mark} {image}: {error}")

    def _total(self) -> str:
        done = sum(one.done_bytes for one in self._now.values())
        total = sum(one.total_bytes or 0 for one in self._now.values())
        return (
            f"{self._num_done} of {self._num_images} images; "
            f"{len(self._now)} under way: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        )

    def __enter__(self) -> PullView:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def _share(now: ImageProgress) -> str:
    if not now.total_bytes:
        return f"{now.done_bytes / 1e6:.0f} MB"
    left = "" if now.seconds_left is None else f", {now.seconds_left / 60:.1f} min left"
    return f"{100 * now.done_bytes // now.total_bytes} %{left}"
