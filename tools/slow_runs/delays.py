"""Parts of a run that are slower than they need be: each wraps a real one and waits first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from palestra.environment.grading.protocol import Grader
from palestra.environment.sandboxes.protocol import (
    CommandResult,
    OnProgress,
    Sandbox,
    SandboxBackend,
    SandboxSpec,
)
from palestra.learning.protocols import LearnerT, WeightPublisher
from palestra.learning.rollouts.protocol import Collector
from palestra.policy.engines.protocol import Engine
from palestra.records import Generation, Group, Rollout, SamplingParams, Task, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Seconds that each stage waits before it does its work."""

    pull: float = 0.0
    start: float = 0.0
    model: float = 0.0
    command: float = 0.0
    grading: float = 0.0
    train: float = 0.0
    publish: float = 0.0
    idle: float = 0.0


class SlowSandbox:
    """A sandbox whose commands take longer."""

    def __init__(self, sandbox: Sandbox, delay_s: float) -> None:
        self._sandbox = sandbox
        self._delay_s = delay_s

    @property
    def sandbox_id(self) -> str:
        return self._sandbox.sandbox_id

    @property
    def workdir(self) -> str:
        return self._sandbox.workdir

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        output_limit_bytes: int = 1 << 20,
        secret: str = "",
    ) -> CommandResult:
        await asyncio.sleep(self._delay_s)
        return await self._sandbox.run(
            command, timeout_s=timeout_s, output_limit_bytes=output_limit_bytes, secret=secret
        )

    async def write_file(self, path: str, data: bytes) -> None:
        await self._sandbox.write_file(path, data)

    async def read_file(self, path: str, *, max_bytes: int = 64 << 20) -> bytes:
        return await self._sandbox.read_file(path, max_bytes=max_bytes)

    def peak_memory_bytes(self) -> int | None:
        return self._sandbox.peak_memory_bytes()


class SlowAgent:
    """An agent whose commands take longer; what the episode runs beside it does not."""

    def __init__(self, agent: Any, delay_s: float) -> None:
        self._agent = agent
        self._delay_s = delay_s
        self.name = agent.name
        self.needs_model = agent.needs_model
        self.env = agent.env

    async def run(self, task: Task, sandbox: Sandbox, endpoint: Any) -> Any:
        return await self._agent.run(task, SlowSandbox(sandbox, self._delay_s), endpoint)


class SlowBackend:
    """A backend that brings images and starts sandboxes late."""

    def __init__(self, backend: SandboxBackend, *, pull_s: float, start_s: float) -> None:
        self._backend = backend
        self._pull_s = pull_s
        self._start_s = start_s

    @property
    def name(self) -> str:
        return self._backend.name

    async def check(self) -> None:
        await self._backend.check()

    async def ensure_image(self, image: str, on_progress: OnProgress) -> None:
        await asyncio.sleep(self._pull_s)
        await self._backend.ensure_image(image, on_progress)

    async def identify(self, image: str) -> str:
        return await self._backend.identify(image)

    async def prepare(self, spec: SandboxSpec) -> None:
        await self._backend.prepare(spec)

    @asynccontextmanager
    async def start(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        await asyncio.sleep(self._start_s)
        async with self._backend.start(spec) as sandbox:
            yield sandbox


class SlowGrader:
    """A grader that begins late."""

    def __init__(self, grader: Grader, delay_s: float) -> None:
        self._grader = grader
        self._delay_s = delay_s

    async def grade(self, task: Task, patch: str) -> Verdict:
        await asyncio.sleep(self._delay_s)
        return await self._grader.grade(task, patch)


class SlowEngine:
    """An engine that answers late."""

    def __init__(self, engine: Engine, delay_s: float) -> None:
        self._engine = engine
        self._delay_s = delay_s

    @property
    def version(self) -> int:
        return self._engine.version

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        await asyncio.sleep(self._delay_s)
        return await self._engine.generate(prompt_ids, sampling)

    async def publish(self, weights: Path, version: int) -> None:
        await self._engine.publish(weights, version)

    async def health(self) -> None:
        await self._engine.health()


class SlowPublisher:
    """Serves weights late."""

    def __init__(self, publisher: WeightPublisher, delay_s: float) -> None:
        self._publisher = publisher
        self._delay_s = delay_s

    @property
    def version(self) -> int:
        return self._publisher.version

    async def publish(self, weights: Path, version: int) -> None:
        await asyncio.sleep(self._delay_s)
        await self._publisher.publish(weights, version)


class SlowLearner(Generic[LearnerT]):
    """A learner that blocks before each step."""

    def __init__(self, learner: LearnerT, delay_s: float) -> None:
        self.learner = learner
        self._delay_s = delay_s

    @property
    def version(self) -> int:
        return self.learner.version

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        time.sleep(self._delay_s)
        return dict(self.learner.train_step(groups))

    @property
    def ratios(self) -> Mapping[str, Sequence[float]]:
        return self.learner.ratios

    def save_weights(self, folder: Path) -> None:
        self.learner.save_weights(folder)


class SlowCollector:
    """Holds a place at work for a while before it begins with the episode."""

    def __init__(self, collector: Collector, delay_s: float) -> None:
        self._collector = collector
        self._delay_s = delay_s

    async def collect(self, task: Task, rollout_id: str) -> Rollout:
        await asyncio.sleep(self._delay_s)
        return await self._collector.collect(task, rollout_id)


class NoCheckpoints:
    """Saves nothing: these runs are looked at and thrown away."""

    def save(self, step: int, learner: object, progress: Mapping[str, Any], /) -> Path:
        return Path()
