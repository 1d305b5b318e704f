"""Images asked for ahead: in order, once, never waited for, never the reason of a failure."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from http_server import serving
from rollout_makers import make_task, make_tasks, until

from palestra.config import RolloutsSection, SamplingSection
from palestra.errors import ConfigError, EnvironmentUnavailable
from palestra.events import MemoryEvents
from palestra.learning.rollouts.ahead import ImagesAhead
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.environment_client import EnvironmentClient
from palestra.learning.rollouts.fake import FakeEnvironment, FakeGateway, ScriptedEpisode
from palestra.learning.rollouts.scheduler import RolloutScheduler
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.records import HOST_IMAGE, Outcome, Task


class Asked:
    """Notes what it is asked for; fails or hangs when told to."""

    def __init__(self) -> None:
        self.images: list[list[str]] = []
        self.error: Exception | None = None
        self.hangs = False

    async def __call__(self, images: Sequence[str]) -> None:
        self.images.append(list(images))
        if self.hangs:
            await asyncio.sleep(3600)
        if self.error is not None:
            raise self.error


def imaged(count: int) -> list[Task]:
    return [dataclasses.replace(t, image=f"image-{n}") for n, t in enumerate(make_tasks(count))]


async def test_in_order_each_once_and_none_of_the_host() -> None:
    asked, tasks = Asked(), imaged(3)
    kata = dataclasses.replace(make_task(9), image=HOST_IMAGE)
    async with ImagesAhead(asked) as ahead:
        ahead.want([kata])
        ahead.want([tasks[1], tasks[0], tasks[1]])
        ahead.want([tasks[0], tasks[2]])
        await until(lambda: sum(map(len, asked.images)) == 3)
        ahead.want(tasks)
        await asyncio.sleep(0)
    assert [image for images in asked.images for image in images] == [
        "image-1",
        "image-0",
        "image-2",
    ]


@pytest.mark.parametrize(
    "error", [EnvironmentUnavailable("it is gone"), ConfigError("no token"), TimeoutError()]
)
async def test_a_failure_is_an_event_and_is_tried_again(error: Exception) -> None:
    asked, events = Asked(), MemoryEvents()
    asked.error = error
    async with ImagesAhead(asked, events=events) as ahead:
        ahead.want(imaged(1))
        await until(lambda: bool(events.events))
        asked.error = None
        ahead.want(imaged(1))
        await until(lambda: len(asked.images) == 2)
    assert [event.kind for event in events.events] == ["prefetch.failed"]


async def test_an_environment_that_hangs_is_given_up() -> None:
    asked, events = Asked(), MemoryEvents()
    asked.hangs = True
    async with ImagesAhead(asked, events=events, timeout_s=0.01) as ahead:
        ahead.want(imaged(1))
        await until(lambda: bool(events.events))


def make_scheduler(
    prefetch: Asked, tasks: list[Task]
) -> tuple[RolloutScheduler, ImagesAhead, FakeGateway]:
    gateway = FakeGateway()
    environment = FakeEnvironment(
        gateway,
        lambda _, n: ScriptedEpisode(outcome=Outcome.SOLVED if n % 2 else Outcome.UNSOLVED),
    )
    ahead = ImagesAhead(prefetch)
    scheduler = RolloutScheduler(
        collector=RolloutCollector(environment, gateway, sampling=SamplingSection()),
        order=TaskOrder(tasks, seed=0, shuffle=False),
        section=RolloutsSection(groups_per_step=2, group_size=2),
        run="run",
        concurrency=8,
        ahead=ahead,
    )
    return scheduler, ahead, gateway


async def test_the_scheduler_asks_for_the_tasks_of_the_next_step() -> None:
    asked = Asked()
    scheduler, ahead, gateway = make_scheduler(asked, imaged(6))
    async with ahead, scheduler:
        await scheduler.next_batch(0)
        await until(lambda: bool(asked.images))
        assert asked.images == [["image-2", "image-3"]]
        gateway.version = 1
        await scheduler.next_batch(1)
        await until(lambda: len(asked.images) == 2)
    assert asked.images[1] == ["image-4", "image-5"]


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
async def test_no_episode_waits_or_fails_for_it(trouble: str) -> None:
    asked = Asked()
    asked.hangs = trouble == "hangs"
    asked.error = EnvironmentUnavailable("it is gone")
    scheduler, ahead, gateway = make_scheduler(asked, imaged(6))
    async with ahead, scheduler, asyncio.timeout(30):
        for version in range(3):
            gateway.version = version
            assert len((await scheduler.next_batch(version)).groups) == 2
    assert asked.images


def test_what_comes_leaves_the_order_as_it_is() -> None:
    order = TaskOrder(imaged(3), seed=7)
    order.quarantine("task-1")
    coming = order.coming(3)
    assert order.position == 0
    assert [order.draw()[1] for _ in range(2)] == list(coming)
    assert len(order.coming(100)) == 2, "one epoch says all"


async def test_over_http() -> None:
    app, bodies = FastAPI(), []

    @app.post("/prefetch", status_code=202)
    async def prefetch(body: dict[str, Any]) -> dict[str, int]:
        bodies.append(body)
        return {"num_images": 2}

    async with serving(app) as url, EnvironmentClient(url) as client:
        await client.prefetch(["a", "b"])
    assert bodies == [{"images": ["a", "b"]}]


async def test_a_server_of_another_make_is_asked_once() -> None:
    app, num_asked = FastAPI(), 0

    @app.middleware("http")
    async def count(request: Any, call_next: Any) -> httpx.Response:
        nonlocal num_asked
        num_asked += 1
        return await call_next(request)  # type: ignore[no-any-return]

    async with serving(app) as url, EnvironmentClient(url) as client:
        await client.prefetch(["a"])
        await client.prefetch(["b"])
    assert num_asked == 1
