"""Images brought ahead: in order, never twice, some at a time."""

from __future__ import annotations

import asyncio

from palestra.environment.images.prefetch import Prefetcher
from palestra.environment.sandboxes.protocol import ImageProgress, OnProgress
from palestra.errors import ImageError


class SlowSource:
    """Notes what is asked of it; each image comes when ``gate`` is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.num_cancelled = 0

    async def ensure(self, image: str, on_progress: OnProgress) -> None:
        self.begun.append(image)
        on_progress(ImageProgress(done_bytes=1, total_bytes=2, seconds_left=None))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if image == "bad":
            raise ImageError("bad is broken")


async def test_in_order_never_twice_and_some_at_a_time() -> None:
    source = SlowSource()
    async with Prefetcher(source.ensure, num_at_once=2) as prefetcher:
        prefetcher.want(["a", "bad", "a", "b"])
        prefetcher.want(["b", "c"])
        await asyncio.sleep(0)
        assert source.begun == ["a", "bad"]
        assert sorted(prefetcher.progress) == ["a", "bad"]
        source.gate.set()
        await prefetcher.idle()
    assert source.begun == ["a", "bad", "b", "c"]
    assert prefetcher.progress == {}
    assert list(prefetcher.failures) == ["bad"]


async def test_what_failed_is_tried_again_when_it_is_wanted_again() -> None:
    source = SlowSource()
    source.gate.set()
    async with Prefetcher(source.ensure) as prefetcher:
        prefetcher.want(["bad", "a"])
        await prefetcher.idle()
        prefetcher.want(["bad", "a"])
        assert prefetcher.failures == {}
        await prefetcher.idle()
    assert source.begun == ["bad", "a", "bad"]
    assert list(prefetcher.failures) == ["bad"]


async def test_leaving_stops_what_runs() -> None:
    source = SlowSource()
    async with Prefetcher(source.ensure, num_at_once=2) as prefetcher:
        prefetcher.want(["a", "b", "c"])
        await asyncio.sleep(0)
    assert source.num_cancelled == 2
    assert source.begun == ["a", "b"]
