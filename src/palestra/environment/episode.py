"""One attempt at one task: sandbox, agent, diff, grade.

The only place that catches: what goes wrong below becomes an outcome here, once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from palestra.config import EnvironmentSection
from palestra.environment.agents.protocol import Agent, AgentExit, AgentResult, ModelEndpoint
from palestra.environment.grading.protocol import Grader
from palestra.environment.patch import StartTrees, UnreadableTree, working_tree_diff
from palestra.environment.sandboxes.protocol import (
    OnProgress,
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.environment.sandboxes.watched import OnCommand, WatchedSandbox
from palestra.errors import (
    AgentTimeout,
    GradingTimeout,
    HostError,
    ImageTimeout,
    InfraError,
    SandboxStartError,
)
from palestra.events import EventSink, NullEvents
from palestra.records import EpisodeResult, ExitStatus, Outcome, Task, Timings, Verdict

# The agent and the grader keep these limits themselves and then know more than we do;
# ours are for one that does not.
AGENT_GRACE_S = 30.0
GRADING_GRACE_S = 60.0

OnStage = Callable[[str], None]
"""Told of each stage as it begins: ``image``, ``start``, ``agent``, ``diff``, ``grade``."""

_EXIT_STATUS = {
    AgentExit.SUBMITTED: ExitStatus.SUBMITTED,
    AgentExit.STEP_LIMIT: ExitStatus.LIMITS_EXCEEDED,
    AgentExit.TIME_LIMIT: ExitStatus.LIMITS_EXCEEDED,
    AgentExit.TOKEN_LIMIT: ExitStatus.ROLLOUT_TRUNCATED,
    AgentExit.COLLAPSED: ExitStatus.COLLAPSE_CONTINUED,
    # A status that Miles trains on; anything else would drop the whole group.
    AgentExit.MALFORMED: ExitStatus.LIMITS_EXCEEDED,
}


@dataclass(slots=True)
class _Progress:
    """What is known so far, so that a failure keeps it."""

    began_s: float
    image_s: float | None = None
    start_s: float | None = None
    agent_s: float | None = None
    eval_s: float | None = None
    agent: AgentResult | None = None
    sandbox: WatchedSandbox | None = None
    patch: str | None = None
    verdict: Verdict | None = None
    on_stage: OnStage = field(default=lambda _: None)
    on_image: OnProgress = field(default=lambda _: None)
    on_command: OnCommand = field(default=lambda _: None)


class EpisodeRunner:
    """Runs episodes with one agent, any number at once.

    Args:
        backend: starts the agent's sandboxes.
        agent: works on the tasks.
        grader: judges the patches, each in a sandbox of its own.
        section: time-outs of the stages.
        limits: of the agent's sandboxes.
        events: told of unexpected failures, with their traceback
            (``episode.unexpected``).
    """

    def __init__(
        self,
        backend: SandboxBackend,
        agent: Agent,
        grader: Grader,
        section: EnvironmentSection,
        limits: SandboxLimits,
        *,
        events: EventSink | None = None,
    ) -> None:
        self._backend = backend
        self._agent = agent
        self._grader = grader
        self._section = section
        self._limits = limits
        self._events = events or NullEvents()
        self._start_trees = StartTrees()

    @property
    def agent(self) -> Agent:
        """Who works on the tasks."""
        return self._agent

    @property
    def backend(self) -> SandboxBackend:
        """Where they do."""
        return self._backend

    async def run(
        self,
        task: Task,
        endpoint: ModelEndpoint | None,
        *,
        episode_id: str | None = None,
        on_stage: OnStage | None = None,
        on_image: OnProgress | None = None,
        on_command: OnCommand | None = None,
    ) -> EpisodeResult:
        """Run one episode to its end. Failures are in the result; cancelling passes through.

        Args:
            task: to work on.
            endpoint: plays the policy; ``None`` for agents that need none.
            episode_id: a fresh one if not given.
            on_stage: told of each stage as it begins.
            on_image: told how far the image is, where it must be fetched.
            on_command: told what the agent runs, as it begins and as it ends.
        """
        episode_id = episode_id or secrets.token_hex(8)
        progress = _Progress(began_s=time.monotonic())
        if on_stage is not None:
            progress.on_stage = on_stage
        if on_image is not None:
            progress.on_image = on_image
        if on_command is not None:
            progress.on_command = on_command
        try:
            await self._attempt(task, endpoint, progress)
        except (InfraError, HostError) as error:
            return _failed(task, episode_id, progress, error)
        except UnreadableTree as error:
            # The agent's own doing, so it is its own loss.
            return _ended(task, episode_id, progress, error=_said(error))
        except Exception as error:
            self._events.emit(
                "episode.unexpected",
                episode_id=episode_id,
                instance_id=task.instance_id,
                error=_said(error),
                traceback=traceback.format_exc(),
            )
            return _failed(task, episode_id, progress, error)
        return _ended(task, episode_id, progress)

    async def _attempt(
        self, task: Task, endpoint: ModelEndpoint | None, progress: _Progress
    ) -> None:
        progress.on_stage("image")
        await self._bring_image(task, progress)
        progress.on_stage("start")
        start_began_s = time.monotonic()
        async with self._started(task) as (sandbox, base):
            progress.start_s = time.monotonic() - start_began_s
            progress.on_stage("agent")
            progress.agent = await self._work(task, sandbox, endpoint, progress)
            if progress.agent.exit is AgentExit.MALFORMED:
                return
            progress.on_stage("diff")
            progress.patch = await working_tree_diff(sandbox, base)
        progress.on_stage("grade")
        await self._grade(task, progress.patch, progress)

    async def _bring_image(self, task: Task, progress: _Progress) -> None:
        limit_s = self._section.image_timeout_s
        began_s = time.monotonic()
        late = ImageTimeout(
            f"{task.instance_id}: the image {task.image} did not come in {limit_s:g} s",
            hint="palestra images pull brings images beforehand; or raise --image-timeout",
        )
        try:
            async with _within(limit_s, late):
                await self._backend.ensure_image(task.image, progress.on_image)
                await self._backend.prepare(self._spec(task))
        finally:
            progress.image_s = time.monotonic() - began_s

    @asynccontextmanager
    async def _started(self, task: Task) -> AsyncIterator[tuple[Sandbox, str]]:
        """A sandbox, and the tree that it starts with."""
        limit_s = self._section.start_timeout_s
        late = SandboxStartError(f"{task.instance_id}: no sandbox in {limit_s:g} s")
        async with AsyncExitStack() as stack:
            async with _within(limit_s, late):
                sandbox = await stack.enter_async_context(self._backend.start(self._spec(task)))
                base = await self._start_trees.of(task, sandbox)
            yield sandbox, base

    def _spec(self, task: Task) -> SandboxSpec:
        return SandboxSpec.for_task(task, self._limits, self._agent.env)

    async def _work(
        self,
        task: Task,
        sandbox: Sandbox,
        endpoint: ModelEndpoint | None,
        progress: _Progress,
    ) -> AgentResult:
        limit_s = self._section.episode_timeout_s + AGENT_GRACE_S
        began_s = time.monotonic()
        progress.sandbox = WatchedSandbox(sandbox, progress.on_command)
        try:
            async with _within(
                limit_s, AgentTimeout(f"{task.instance_id}: the agent did not end in {limit_s:g} s")
            ):
                return await self._agent.run(task, progress.sandbox, endpoint)
        finally:
            progress.agent_s = time.monotonic() - began_s

    async def _grade(self, task: Task, patch: str, progress: _Progress) -> None:
        limit_s = self._section.eval_timeout_s + self._section.start_timeout_s + GRADING_GRACE_S
        began_s = time.monotonic()
        try:
            async with _within(
                limit_s, GradingTimeout(f"{task.instance_id}: no verdict in {limit_s:g} s")
            ):
                progress.verdict = await self._grader.grade(task, patch)
        finally:
            progress.eval_s = time.monotonic() - began_s


@asynccontextmanager
async def _within(limit_s: float, late: InfraError) -> AsyncIterator[None]:
    """Raise ``late`` when the block takes longer than ``limit_s``."""
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise late from None
        raise


def never_begun(task: Task, episode_id: str, error: InfraError) -> EpisodeResult:
    """The result of an episode that failed before its first stage."""
    return _failed(task, episode_id, _Progress(began_s=time.monotonic()), error)


def _ended(
    task: Task, episode_id: str, progress: _Progress, *, error: str | None = None
) -> EpisodeResult:
    agent = progress.agent
    assert agent is not None, "an episode without failure has an agent's result"
    return _result(
        task,
        episode_id,
        progress,
        outcome=_outcome(agent.exit, progress.verdict),
        exit_status=_EXIT_STATUS[agent.exit],
        error=error,
    )


def _failed(task: Task, episode_id: str, progress: _Progress, error: Exception) -> EpisodeResult:
    return _result(
        task,
        episode_id,
        progress,
        outcome=Outcome.INFRA_ERROR,
        exit_status=type(error).__name__,
        error=_said(error),
    )


def _result(
    task: Task,
    episode_id: str,
    progress: _Progress,
    *,
    outcome: Outcome,
    exit_status: str,
    error: str | None,
) -> EpisodeResult:
    agent = progress.agent
    return EpisodeResult(
        episode_id=episode_id,
        instance_id=task.instance_id,
        outcome=outcome,
        exit_status=exit_status,
        messages=agent.messages if agent else (),
        patch=progress.patch,
        submission=agent.submission if agent else None,
        verdict=progress.verdict,
        error=error,
        num_turns=agent.num_turns if agent else 0,
        num_tool_calls=agent.num_tool_calls if agent else 0,
        timings=Timings(
            image_s=progress.image_s,
            start_s=progress.start_s,
            agent_s=progress.agent_s,
            model_s=agent.model_s if agent else None,
            env_s=agent.env_s if agent else None,
            eval_s=progress.eval_s,
            total_s=time.monotonic() - progress.began_s,
        ),
        commands=progress.sandbox.commands if progress.sandbox else None,
    )


def _outcome(how: AgentExit, verdict: Verdict | None) -> Outcome:
    if how is AgentExit.MALFORMED:
        return Outcome.MALFORMED
    if verdict is not None and verdict.tampered:
        return Outcome.TAMPERED
    if how is not AgentExit.SUBMITTED:
        return Outcome.TRUNCATED
    return Outcome.SOLVED if verdict is not None and verdict.resolved else Outcome.UNSOLVED


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
