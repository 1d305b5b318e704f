"""One rollout: open a session, run the episode on it, take the trace."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from contextlib import suppress

from palestra.config import SamplingSection
from palestra.errors import InfraError
from palestra.events import EventSink, NullEvents
from palestra.learning.rollouts.protocol import Environment, Gateway, Session
from palestra.records import EpisodeResult, Outcome, Rollout, Task, Timings, Trace

_MAX_RETRY_DELAY_S = 30.0


class RolloutCollector:
    """Joins what the environment knows of an episode with what the gateway sampled in it.

    Args:
        environment: runs the episodes.
        gateway: samples for them.
        sampling: of every turn.
        max_total_tokens: most ids of one conversation; none: the gateway's own limit.
        infra_retries: how often an episode that ended in ``infra_error`` is run again.
        retry_delay_s: before the first retry; doubles with each one, up to 30 s.
        seed: of the sampling; with none, every session draws its own.
        events: told of each retry (``rollout.retry``).
    """

    def __init__(
        self,
        environment: Environment,
        gateway: Gateway,
        *,
        sampling: SamplingSection,
        max_total_tokens: int | None = None,
        infra_retries: int = 2,
        retry_delay_s: float = 1.0,
        seed: int | None = None,
        events: EventSink | None = None,
    ) -> None:
        self._environment = environment
        self._gateway = gateway
        self._sampling = sampling
        self._max_total_tokens = max_total_tokens
        self._infra_retries = infra_retries
        self._retry_delay_s = retry_delay_s
        self._seed = seed
        self._events = events or NullEvents()

    async def collect(self, task: Task, rollout_id: str) -> Rollout:
        """Run one attempt at ``task``, again and in a new session while it is an infra error.

        Returns:
            The rollout; after the last retry also one whose outcome is ``infra_error``.

        Raises:
            UsageError: the user must mend something before any episode can run.
        """
        for attempt in range(self._infra_retries + 1):
            rollout = await self._attempt(task, rollout_id, attempt)
            if rollout.episode.outcome is not Outcome.INFRA_ERROR or attempt == self._infra_retries:
                break
            self._events.emit(
                "rollout.retry",
                rollout_id=rollout_id,
                attempt=attempt + 1,
                exit_status=rollout.episode.exit_status,
                error=rollout.episode.error,
            )
            await asyncio.sleep(min(_MAX_RETRY_DELAY_S, self._retry_delay_s * 2**attempt))
        return rollout

    async def _attempt(self, task: Task, rollout_id: str, attempt: int) -> Rollout:
        try:
            session = await self._open(rollout_id, attempt)
            try:
                episode = await self._environment.run(
                    task,
                    sglang_url=session.base_url,
                    sampling=self._sampling,
                    # Not made of the rollout's id: a run that is resumed must not be
                    # answered with the episodes of its former life.
                    idempotency_key=uuid.uuid4().hex,
                )
                trace = await self._gateway.take(session.session_id)
            except BaseException:
                await self._drop(session)
                raise
        except InfraError as error:
            episode = _failed_episode(task, f"{rollout_id}-{attempt}", error)
            trace = Trace(session_id="", turns=())
        return Rollout(rollout_id=rollout_id, episode=episode, trace=trace)

    async def _open(self, rollout_id: str, attempt: int) -> Session:
        opening = asyncio.ensure_future(
            self._gateway.open(
                self._sampling,
                max_total_tokens=self._max_total_tokens,
                seed=_session_seed(self._seed, rollout_id, attempt),
            )
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The gateway may have opened it already; without its id nobody could end it.
            with suppress(InfraError):
                await self._drop(await opening)
            raise

    async def _drop(self, session: Session) -> None:
        # Best effort: a gateway that is gone has no sessions either.
        with suppress(InfraError):
            await self._gateway.drop(session.session_id)


def _session_seed(seed: int | None, rollout_id: str, attempt: int) -> int | None:
    if seed is None:
        return None
    digest = hashlib.sha256(f"{seed}/{rollout_id}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _failed_episode(task: Task, episode_id: str, error: InfraError) -> EpisodeResult:
    return EpisodeResult(
        episode_id=episode_id,
        instance_id=task.instance_id,
        outcome=Outcome.INFRA_ERROR,
        exit_status=type(error).__name__,
        messages=(),
        patch=None,
        submission=None,
        verdict=None,
        error=str(error),
        num_turns=0,
        num_tool_calls=0,
        timings=Timings(),
    )
