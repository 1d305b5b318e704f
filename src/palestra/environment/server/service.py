"""What the server does, without HTTP: a queue, the episodes that are live, repeats."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from palestra.config import EnvironmentSection
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.episode import EpisodeRunner, never_begun
from palestra.environment.images.prefetch import Prefetcher
from palestra.environment.sandboxes.protocol import ImageProgress
from palestra.environment.server.answers import run_response
from palestra.environment.server.endpoints import (
    BadRequest,
    PolicyDefaults,
    choose_endpoint,
    choose_task,
)
from palestra.environment.server.metrics import ServerMetrics
from palestra.environment.server.queue import FairQueue
from palestra.environment.server.reach import reach
from palestra.environment.server.repeats import KeyReused, Repeats
from palestra.errors import ModelUnavailable, QueueTimeout
from palestra.records import EpisodeResult, Task
from palestra.wire import PrefetchRequest, ReachResponse, RunRequest

QUEUED = "queued"
IMAGE = "image"
AGENT = "agent"
_SHOWN_CHARS = 400


class ServerStopping(Exception):
    """The server takes no more requests."""


@dataclass(slots=True, eq=False)
class _Live:
    """An episode in the queue or at work."""

    episode_id: str
    instance_id: str
    image_name: str
    began_s: float
    stage: str = QUEUED
    stage_began_s: float = field(default_factory=time.monotonic)
    image: ImageProgress | None = None
    command: str | None = None
    last_command: str | None = None
    command_began_s: float = 0.0
    num_commands: int = 0

    def enter(self, stage: str) -> None:
        self.stage = stage
        self.stage_began_s = time.monotonic()
        self.image = None

    def note_command(self, command: str | None) -> None:
        self.num_commands += command is not None
        self.last_command = self.command or self.last_command
        self.command = command
        self.command_began_s = time.monotonic()

    def note_image(self, progress: ImageProgress) -> None:
        self.image = progress

    def describe(self, now_s: float, ahead: Mapping[str, ImageProgress]) -> dict[str, Any]:
        image = self.image
        if image is None and self.stage == IMAGE:
            image = ahead.get(self.image_name)  # it waits for what is being brought ahead
        return {
            "id": self.episode_id,
            "instance_id": self.instance_id,
            "stage": self.stage,
            "seconds": round(now_s - self.began_s, 3),
            "stage_seconds": round(now_s - self.stage_began_s, 3),
            **({"detail": pulling(image)} if image else {}),
            **self._describe_command(now_s),
        }

    def _describe_command(self, now_s: float) -> dict[str, Any]:
        if self.stage != AGENT:
            return {}
        told = {"command": self.command, "last_command": self.last_command}
        return {
            "commands": self.num_commands,
            # Of the command, or of the thinking since the last one.
            "doing_seconds": round(now_s - (self.command_began_s or self.stage_began_s), 3),
            **{name: text[:_SHOWN_CHARS] for name, text in told.items() if text is not None},
        }


class EpisodeService:
    """Answers run requests, ``section.concurrency`` at once, the clients by turns.

    Args:
        runner: runs the episodes.
        section: concurrency and the hosts that requests may name besides private ones.
        policy: the endpoint of requests that name none.
        tasks: that a request may name by id alone.
        repeats: remembers answers by idempotency key.
        prefetcher: brings images ahead; ``None``: one of the runner's backend.
    """

    def __init__(
        self,
        runner: EpisodeRunner,
        section: EnvironmentSection,
        *,
        policy: PolicyDefaults | None = None,
        tasks: Iterable[Task] = (),
        repeats: Repeats | None = None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self._runner = runner
        self._section = section
        self._policy = policy or PolicyDefaults()
        self._tasks: Mapping[str, Task] = {task.instance_id: task for task in tasks}
        self._repeats = repeats or Repeats()
        self._prefetcher = prefetcher or Prefetcher(runner.backend.ensure_image)
        self._queue = FairQueue(section.concurrency)
        self._live: dict[_Live, asyncio.Task[Any] | None] = {}
        self._totals: Counter[str] = Counter()
        self._metrics = ServerMetrics(
            self._stages, self._num_pulls, concurrency=section.concurrency
        )
        self._stopping = False
        self._began_s = time.monotonic()

    @property
    def agent_name(self) -> str:
        """The agent that works on all tasks."""
        return self._runner.agent.name

    @property
    def policy_model_name(self) -> str:
        """Name of the configured policy."""
        return self._policy.model_name

    async def reach(self, url: str) -> ReachResponse:
        """Whether episodes could reach the policy at ``url``."""
        return await reach(url, allow_hosts=self._section.allow_hosts)

    async def answer(
        self, request: RunRequest, *, idempotency_key: str | None = None, client: str = ""
    ) -> bytes:
        """Run the episode that ``request`` asks for; the JSON of a ``RunResponse``.

        Cancelling this cancels the episode, unless somebody else waits for it under
        the same key.

        Args:
            request: a row, or the id of one.
            idempotency_key: repeats of it get the first answer.
            client: whose turn it must be; those who do not say share one.

        Raises:
            BadRequest: the request cannot be served; names the field.
            ServerStopping: the server is about to end.
            Stopped: it ended meanwhile.
        """
        if self._stopping:
            raise ServerStopping
        task = choose_task(request, self._tasks)
        try:
            return await self._repeats.run(
                idempotency_key, request.instance_id, lambda: self._episode(request, task, client)
            )
        except KeyReused as error:
            raise BadRequest(str(error), field="Idempotency-Key") from None

    def status(self) -> dict[str, Any]:
        """Live episodes by stage, the queue, and totals by outcome."""
        now_s = time.monotonic()
        ahead = self._prefetcher.progress
        return {
            "episodes": [live.describe(now_s, ahead) for live in self._live],
            "stages": self._stages(),
            "queue_length": sum(live.stage == QUEUED for live in self._live),
            "concurrency": self._section.concurrency,
            "prefetch": {
                "pulling": {image: pulling(now) for image, now in ahead.items()},
                "failed": {image: str(error) for image, error in self._prefetcher.failures.items()},
            },
            "totals": dict(self._totals),
            "uptime_s": round(now_s - self._began_s, 3),
            "stopping": self._stopping,
        }

    def prefetch(self, request: PrefetchRequest) -> int:
        """Bring images in the background, in this order; how many were named.

        Raises:
            BadRequest: a task that this server does not know.
            ServerStopping: the server is about to end.
        """
        if self._stopping:
            raise ServerStopping
        for instance_id in request.instance_ids:
            if instance_id not in self._tasks:
                raise BadRequest(
                    f"none of the {len(self._tasks)} tasks of this server is {instance_id!r}",
                    field="instance_ids",
                )
        named = (self._tasks[instance_id].image for instance_id in request.instance_ids)
        images = tuple(dict.fromkeys((*request.images, *named)))
        self._prefetcher.want(images)
        return len(images)

    def metrics(self) -> bytes:
        """The page that Prometheus scrapes."""
        return self._metrics.render()

    def stop_taking(self) -> None:
        """Refuse new requests and give up those in the queue; what is at work goes on."""
        self._stopping = True
        for live, task in list(self._live.items()):
            if live.stage == QUEUED and task is not None:
                task.cancel()

    async def aclose(self) -> None:
        """Cancel every episode and wait until all is cleaned up."""
        self._stopping = True
        await asyncio.gather(self._repeats.aclose(), self._prefetcher.aclose())

    async def _episode(self, request: RunRequest, task: Task, client: str) -> bytes:
        completions: list[Mapping[str, Any]] = []
        endpoint: ModelEndpoint | None = None
        with self._listed(task) as live:
            try:
                if self._runner.agent.needs_model:
                    endpoint = await choose_endpoint(
                        request,
                        self._policy,
                        allow_hosts=self._section.allow_hosts,
                        on_completion=completions.append if request.return_token_ids else None,
                    )
                result = await self._in_turn(live, task, endpoint, client)
            except ModelUnavailable as error:
                result = never_begun(task, live.episode_id, error)
        self._totals[result.outcome.value] += 1
        self._metrics.add(result)
        model = endpoint.model if endpoint else self.agent_name
        answer = run_response(request, result, model=model, completions=completions)
        return answer.model_dump_json().encode()

    async def _in_turn(
        self, live: _Live, task: Task, endpoint: ModelEndpoint | None, client: str
    ) -> EpisodeResult:
        try:
            async with self._queue.place(client, timeout_s=self._section.queue_timeout_s):
                queue_s = time.monotonic() - live.began_s
                result = await self._runner.run(
                    task,
                    endpoint,
                    episode_id=live.episode_id,
                    on_stage=live.enter,
                    on_image=live.note_image,
                    on_command=live.note_command,
                )
        except QueueTimeout as error:
            queue_s = time.monotonic() - live.began_s
            result = never_begun(task, live.episode_id, error)
        return replace(result, timings=replace(result.timings, queue_s=queue_s))

    def _num_pulls(self) -> int:
        num_waited_for = sum(live.image is not None for live in self._live)
        return num_waited_for + len(self._prefetcher.progress)

    def _stages(self) -> dict[str, int]:
        return dict(Counter(live.stage for live in self._live))

    @contextmanager
    def _listed(self, task: Task) -> Iterator[_Live]:
        live = _Live(
            episode_id=secrets.token_hex(8),
            instance_id=task.instance_id,
            image_name=task.image,
            began_s=time.monotonic(),
        )
        self._live[live] = asyncio.current_task()
        try:
            yield live
        finally:
            del self._live[live]


def pulling(progress: ImageProgress) -> str:
    """In words: ``pulling, 43 %, 2 min left``, as far as it is known."""
    words = ["pulling"]
    if progress.total_bytes:
        words.append(f"{min(100, 100 * progress.done_bytes // progress.total_bytes)} %")
    else:
        words.append(f"{progress.done_bytes >> 20} MiB so far")
    if progress.seconds_left is not None:
        seconds = round(progress.seconds_left)
        words.append(f"{seconds} s left" if seconds < 60 else f"{round(seconds / 60)} min left")
    return ", ".join(words)
