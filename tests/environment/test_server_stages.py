"""The stages of an episode in the server: turns, time-outs, pulls, and what is said of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from agent_toys import make_task, until

from palestra.config import EnvironmentSection
from palestra.environment.agents.gold import GoldAgent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.fake import ScriptedGrader
from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.protocol import ImageProgress, OnProgress, SandboxLimits
from palestra.environment.server.endpoints import BadRequest
from palestra.environment.server.queue import FairQueue
from palestra.environment.server.service import EpisodeService, pulling
from palestra.errors import HostError, QueueTimeout
from palestra.tasks.rows import task_to_row
from palestra.wire import PrefetchRequest, RunRequest, RunResponse


class SlowImages(FakeSandboxBackend):
    """Images come when they are let in; each one is half there meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.let_in = asyncio.Event()
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.is_silent = False

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        self.asked.append(image)
        if not self.is_silent:
            on_progress(ImageProgress(done_bytes=43, total_bytes=100, seconds_left=118))
        await self.let_in.wait()
        if self.error is not None:
            raise self.error


def service(backend: FakeSandboxBackend, **section: float) -> EpisodeService:
    settings = EnvironmentSection.model_validate(section)
    grader = ScriptedGrader(lambda *_: True)
    runner = EpisodeRunner(backend, GoldAgent(), grader, settings, SandboxLimits())
    return EpisodeService(runner, settings, tasks=[make_task()])


async def answer(server: EpisodeService, client: str = "") -> RunResponse:
    request = RunRequest.model_validate(task_to_row(make_task()))
    return RunResponse.model_validate_json(await server.answer(request, client=client))


# --- turns ----------------------------------------------------------------------


async def test_clients_take_turns_and_each_is_served_in_order() -> None:
    queue, served = FairQueue(1), list[str]()

    async def one(client: str, name: str) -> None:
        async with queue.place(client, timeout_s=30):
            served.append(name)

    async with AsyncExitStack() as held:
        await held.enter_async_context(queue.place("a", timeout_s=1))
        waiting = []
        for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
            waiting.append(asyncio.create_task(one(name[0], name)))
            await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_place_is_never_lost_whoever_gives_up_and_when() -> None:
    queue = FairQueue(2)

    async def one(index: int) -> None:
        async with queue.place(str(index % 3), timeout_s=0.01 if index % 4 else 30):
            await asyncio.sleep(0.002)

    waiting = [asyncio.create_task(one(index)) for index in range(60)]
    for index, task in enumerate(waiting):
        await asyncio.sleep(0.0005)
        if index % 5 == 0:
            task.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(isinstance(end, QueueTimeout) for end in ended), "nobody ever waited too long"
    async with queue.place("x", timeout_s=1), queue.place("y", timeout_s=1):
        with pytest.raises(QueueTimeout):
            async with queue.place("z", timeout_s=0.01):
                raise AssertionError("a third place")


async def test_giving_up_in_the_moment_of_ones_turn_hands_the_place_on() -> None:
    queue = FairQueue(1)

    async def one() -> None:
        async with queue.place("a", timeout_s=30):
            raise AssertionError("it was cancelled before")

    async with AsyncExitStack() as held:
        await held.enter_async_context(queue.place("a", timeout_s=1))
        waiting = asyncio.create_task(one())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with queue.place("a", timeout_s=1):
        pass


# --- time-outs ------------------------------------------------------------------


async def test_too_long_in_the_queue_is_an_infra_error_of_its_own() -> None:
    backend = SlowImages()
    server = service(backend, concurrency=1, queue_timeout_s=0.1)
    first = asyncio.create_task(answer(server))
    await until(lambda: bool(backend.asked), what="the image is asked for")
    second = await answer(server)
    assert (second.info["exit_status"], second.mask_sample) == ("QueueTimeout", True)
    assert second.timings["queue_s"] >= 0.1
    assert "image_s" not in second.timings
    backend.let_in.set()
    assert (await first).reward == 1.0


async def test_an_image_that_does_not_come_is_an_infra_error_of_its_own() -> None:
    late = await answer(service(SlowImages(), image_timeout_s=0.1))
    assert (late.info["exit_status"], late.mask_sample) == ("ImageTimeout", True)
    assert late.timings["image_s"] >= 0.1
    assert "start_s" not in late.timings
    assert late.error is not None
    assert make_task().image in late.error


async def test_a_full_disk_names_itself_and_what_to_do() -> None:
    backend = SlowImages()
    backend.error = HostError("the disk would be full", hint="palestra images prune")
    backend.let_in.set()
    failed = await answer(service(backend))
    assert (failed.info["exit_status"], failed.mask_sample) == ("HostError", True)
    assert failed.error == "HostError: the disk would be full (palestra images prune)"


# --- what is said ----------------------------------------------------------------


async def test_status_and_metrics_say_how_far_a_pull_is() -> None:
    backend = SlowImages()
    server = service(backend)
    asked = asyncio.create_task(answer(server))
    await until(lambda: bool(backend.asked), what="the image is asked for")
    (episode,) = server.status()["episodes"]
    assert (episode["stage"], episode["detail"]) == ("image", "pulling, 43 %, 2 min left")
    assert b"palestra_pulls 1.0" in server.metrics()
    assert b"palestra_sandboxes 0.0" in server.metrics()
    backend.let_in.set()
    ended = await asked
    assert {"queue_s", "image_s", "start_s", "agent_s", "eval_s"} <= set(ended.timings)
    assert b"palestra_pulls 0.0" in server.metrics()
    assert b'palestra_stage_seconds_count{stage="image"} 1.0' in server.metrics()


@pytest.mark.parametrize(
    ("done", "total", "left", "said"),
    [
        (0, None, None, "pulling, 0 MiB so far"),
        (5 << 20, None, 12.2, "pulling, 5 MiB so far, 12 s left"),
        (300, 200, 90, "pulling, 100 %, 2 min left"),
    ],
)
def test_unknown_parts_of_a_pull_are_not_said(
    done: int, total: int | None, left: float | None, said: str
) -> None:
    assert pulling(ImageProgress(done_bytes=done, total_bytes=total, seconds_left=left)) == said


async def test_what_comes_next_is_brought_ahead() -> None:
    backend = SlowImages()
    server = service(backend)
    task = make_task()
    wanted = PrefetchRequest(images=("first", task.image), instance_ids=(task.instance_id,))
    assert server.prefetch(wanted) == 2
    await until(lambda: len(backend.asked) == 2, what="both are asked for")
    assert backend.asked == ["first", task.image]
    assert server.status()["prefetch"]["pulling"]["first"] == "pulling, 43 %, 2 min left"
    with pytest.raises(BadRequest, match="stranger"):
        server.prefetch(PrefetchRequest(instance_ids=("stranger",)))
    await server.aclose()
    assert server.status()["prefetch"]["pulling"] == {}


async def test_an_episode_that_waits_for_what_is_brought_ahead_says_how_far_that_is() -> None:
    backend = SlowImages()
    server = service(backend)
    server.prefetch(PrefetchRequest(images=(make_task().image,)))
    await until(lambda: bool(backend.asked), what="it is brought ahead")
    backend.is_silent = True
    asked = asyncio.create_task(answer(server))
    await until(lambda: len(backend.asked) == 2, what="the episode waits for it")
    (episode,) = server.status()["episodes"]
    assert (episode["stage"], episode["detail"]) == ("image", "pulling, 43 %, 2 min left")
    backend.let_in.set()
    assert (await asked).reward == 1.0
