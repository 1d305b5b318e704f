"""Public fakes of environment and gateway for tests and dry runs: no HTTP, no model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from palestra.config import SamplingSection
from palestra.errors import GatewayError
from palestra.learning.rollouts.protocol import Session
from palestra.records import (
    EpisodeResult,
    ExitStatus,
    FinishReason,
    Outcome,
    Segment,
    Task,
    Timings,
    Trace,
    Turn,
    Verdict,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedEpisode:
    """What one fake episode does.

    Attributes:
        outcome: how it ends.
        delay_s: how long it takes.
        num_turns: turns with one sampled id each, spread evenly over the delay.
        error: raised instead of an answer, after the delay.
        patch: that it leaves.
        verdict: on the patch.
    """

    outcome: Outcome = Outcome.SOLVED
    delay_s: float = 0.0
    num_turns: int = 2
    error: Exception | None = None
    patch: str = ""
    verdict: Verdict | None = None


EpisodeScript = Callable[[Task, int], ScriptedEpisode]
"""Says what the n-th episode (from 0) of a task does."""


class FakeGateway:
    """Sessions in memory; every turn samples one id under the version that is served.

    Attributes:
        version: that is served; set it to publish another.
        opened: ids of all sessions that were ever opened.
    """

    def __init__(self, *, version: int = 0) -> None:
        self.version = version
        self.opened: list[str] = []
        self._turns: dict[str, list[Turn]] = {}
        self._ids = itertools.count()

    @property
    def open_sessions(self) -> tuple[str, ...]:
        """Ids of the sessions that were neither taken nor dropped."""
        return tuple(self._turns)

    async def open(
        self,
        sampling: SamplingSection,
        *,
        max_total_tokens: int | None = None,
        seed: int | None = None,
    ) -> Session:
        """Open a session."""
        await asyncio.sleep(0)
        session_id = f"s{next(self._ids)}"
        self.opened.append(session_id)
        self._turns[session_id] = []
        return Session(session_id=session_id, base_url=f"http://fake/s/{session_id}/v1")

    def sample(self, session_id: str) -> None:
        """Play one turn of a session.

        Raises:
            GatewayError: there is no such session.
        """
        turns = self._of(session_id)
        turns.append(
            Turn(
                index=len(turns),
                parent=len(turns) - 1 if turns else None,
                context_ids=(1, 2),
                segments=(Segment(ids=(3,), logprobs=(-0.5,), policy_version=self.version),),
                finish_reason=FinishReason.STOP,
                temperature=1.0,
                duration_s=0.0,
            )
        )

    async def take(self, session_id: str) -> Trace:
        """Take the trace; once."""
        await asyncio.sleep(0)
        turns = self._of(session_id)
        del self._turns[session_id]
        return Trace(session_id=session_id, turns=tuple(turns))

    async def drop(self, session_id: str) -> None:
        """Forget a session."""
        await asyncio.sleep(0)
        self._turns.pop(session_id, None)

    def _of(self, session_id: str) -> list[Turn]:
        if session_id not in self._turns:
            raise GatewayError(f"there is no session {session_id}")
        return self._turns[session_id]


class FakeEnvironment:
    """Plays scripted episodes on a :class:`FakeGateway`.

    Args:
        gateway: whose sessions the episodes sample in.
        script: says what each episode does.

    Attributes:
        num_running: episodes in flight now.
        max_running: the most that ever were.
        keys: idempotency keys in the order of the requests.
        started: instance ids in the order of the requests.
    """

    def __init__(self, gateway: FakeGateway, script: EpisodeScript) -> None:
        self._gateway = gateway
        self._script = script
        self._counts: dict[str, int] = {}
        self.num_running = 0
        self.max_running = 0
        self.keys: list[str] = []
        self.started: list[str] = []

    async def run(
        self,
        task: Task,
        *,
        sglang_url: str,
        sampling: SamplingSection,
        idempotency_key: str,
    ) -> EpisodeResult:
        """Play the next episode of ``task``."""
        number = self._counts.get(task.instance_id, 0)
        self._counts[task.instance_id] = number + 1
        self.keys.append(idempotency_key)
        self.started.append(task.instance_id)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            return await self._play(task, sglang_url, self._script(task, number), idempotency_key)
        finally:
            self.num_running -= 1

    async def _play(
        self, task: Task, url: str, script: ScriptedEpisode, episode_id: str
    ) -> EpisodeResult:
        session_id = url.split("/")[-2]
        pause_s = script.delay_s / (script.num_turns + 1)
        for _ in range(script.num_turns):
            await asyncio.sleep(pause_s)
            self._gateway.sample(session_id)
        await asyncio.sleep(pause_s)
        if script.error is not None:
            raise script.error
        failed = script.outcome is Outcome.INFRA_ERROR
        return EpisodeResult(
            episode_id=episode_id,
            instance_id=task.instance_id,
            outcome=script.outcome,
            exit_status="SandboxDied" if failed else ExitStatus.SUBMITTED,
            messages=(),
            patch=None if failed else script.patch,
            submission=None,
            verdict=script.verdict,
            error="the sandbox died" if failed else None,
            num_turns=script.num_turns,
            num_tool_calls=script.num_turns,
            timings=Timings(total_s=script.delay_s),
        )
