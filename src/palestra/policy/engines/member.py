"""One server of a fleet: brought up, given the weights of now, watched, brought up again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from palestra.errors import EngineError
from palestra.events import EventSink
from palestra.policy.engines.host import Host
from palestra.policy.engines.remote import Sample, Server, ServerGone
from palestra.records import SamplingParams

HEALTH_EVERY_S = 0.5
"""Between two looks at a server that is coming up."""
WATCH_EVERY_S = 20.0
MAX_MISSED = 3
"""Looks at a serving server in a row that may fail before it counts as hung."""
SAY_EVERY_S = 15.0
ENDING_S = 0.5
FIRST_DELAY_S, MAX_DELAY_S = 1.0, 60.0
SETTLED_S = 120.0
"""A server that served this long is restarted without delay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights to serve: a Hugging Face folder, their version, and what servers call them."""

    folder: Path
    version: int
    stamp: str


class State(StrEnum):
    """What a member can do now."""

    DOWN = "down"
    LOADING = "loading"
    SERVING = "serving"


class Member:
    """One server of a fleet.

    Its answers are taken only if they are stamped with weights that were given to it since it
    came up: what a server sampled that was restarted behind our back is thrown away.

    Args:
        server: asks it.
        host: runs it.
        target: the weights that ought to be served now.
        changed: called when the state changes.
        events: told when it comes up and when it is lost.
        say: told how its start goes on, in one line.
    """

    def __init__(
        self,
        server: Server,
        host: Host,
        *,
        target: Callable[[], Weights],
        changed: Callable[[], None],
        events: EventSink,
        say: Callable[[str], None],
    ) -> None:
        self._server = server
        self._host = host
        self._target = target
        self._changed = changed
        self._events = events
        self._say = say
        self._state = State.DOWN
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._versions: dict[str, int] = {}  # by stamp, of this life
        self._current: Weights | None = None
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it served for the first time, or failed to."""
        self.trouble = "it has not come up yet"
        self.in_flight = 0
        self.num_taken = 0

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._server.url

    @property
    def state(self) -> State:
        """What it can do now."""
        return self._state

    @property
    def version(self) -> int | None:
        """Of the weights that it serves; ``None`` while that is unknown."""
        return self._current.version if self._current else None

    # --- sampling ---------------------------------------------------------------

    async def sample(
        self, ids: Sequence[int], sampling: SamplingParams, *, max_new_tokens: int
    ) -> tuple[Sample, int]:
        """What the server samples, and the version of the weights that sampled it.

        Raises:
            ContextOverflow: the server says that ``ids`` are too many.
            ServerGone: the server was lost meanwhile, or sampled with weights that are not ours.
            ServerBusy: it cannot answer now.
            EngineError: it refuses, or answers nonsense.
        """
        lost, oldest = self._lost, self.version
        asking = asyncio.ensure_future(
            self._server.sample(ids, sampling, max_new_tokens=max_new_tokens)
        )
        self.in_flight += 1
        self.num_taken += 1
        try:
            waited: tuple[asyncio.Future[Any], ...] = (asking, lost)
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise ServerGone(f"the engine at {self.url} was lost: {lost.result()}")
            sample = asking.result()
        except ServerGone as error:
            self._lose(lost, str(error))
            raise
        finally:
            self.in_flight -= 1
            await _ended(asking)
        if not sample.ids and oldest is not None:
            return sample, oldest  # aborted before its first id, it is of no weights
        version = self._versions.get(sample.stamp or "")
        if version is None or oldest is None or version < oldest:
            reason = f"its weights are stamped {sample.stamp!r}, which are not those given to it"
            self._lose(lost, reason)
            raise ServerGone(f"the engine at {self.url} was lost: {reason}")
        return sample, version

    # --- weights ----------------------------------------------------------------

    async def load(self, weights: Weights) -> float:
        """Serve ``weights``; the seconds that nothing could be sampled.

        Whatever goes wrong, the server is lost: which weights it has is unknown then.

        Raises:
            EngineError: it failed.
        """
        lost = self._lost
        began_s = time.monotonic()
        self._become(State.LOADING)
        try:
            await self._load(weights, lost)
        except BaseException as error:
            self._lose(lost, f"{type(error).__name__}: {error}")
            raise
        self._become(State.SERVING)
        return time.monotonic() - began_s

    async def _load(self, weights: Weights, lost: asyncio.Future[str]) -> None:
        self._versions[weights.stamp] = weights.version
        await self._server.load(weights.folder, weights.stamp)
        if lost.done():
            raise ServerGone(f"the engine at {self.url} was lost: {lost.result()}")
        self._current = weights

    # --- a life -----------------------------------------------------------------

    async def keep(self) -> None:
        """Bring the server up and keep it serving, until cancelled."""
        delay_s = FIRST_DELAY_S
        while True:
            began_s = time.monotonic()
            try:
                await self._come_up()
            except EngineError as error:
                self._fell(str(error))
                if not self.up.done():
                    # A first start that fails would fail again.
                    self.up.set_exception(error)
                await self._host.down()
            else:
                reason, is_hung = await self._until_lost()
                self._fell(reason)
                if is_hung:
                    await self._host.down()
                if time.monotonic() - began_s > SETTLED_S:
                    delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    async def _come_up(self) -> None:
        """Start it, wait until it is healthy, and give it the weights that are due by then."""
        began_s = time.monotonic()
        self._versions, self._current = {}, None
        self._lost = lost = asyncio.get_running_loop().create_future()
        await self._host.up()
        await self._until_healthy()
        weights: Weights | None = None
        while weights is not self._target():
            weights = self._target()
            await self._load(weights, lost)
        self._events.emit(
            "engine.up",
            url=self.url,
            version=self.version,
            start_s=round(time.monotonic() - began_s, 3),
        )
        self._become(State.SERVING)
        if not self.up.done():
            self.up.set_result(None)

    async def _until_healthy(self) -> None:
        gone = asyncio.ensure_future(self._host.gone())
        looking = asyncio.ensure_future(self._look())
        try:
            await asyncio.wait({gone, looking}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not looking.done():
                raise ServerGone(
                    f"the engine at {self.url} {gone.result()} before it was healthy"
                    + self._host.last_words()
                )
            looking.result()
        finally:
            for task in (gone, looking):
                task.cancel()
            await asyncio.wait({gone, looking})

    async def _look(self) -> None:
        began_s = said_s = time.monotonic()
        while True:
            try:
                return await self._server.health()
            except EngineError as error:
                now_s = time.monotonic()
                if now_s - began_s > self._host.start_timeout_s:
                    raise EngineError(
                        f"{error.message}, {now_s - began_s:.0f} s after its start"
                        + self._host.last_words()
                    ) from error
            if now_s - said_s > SAY_EVERY_S:
                said_s = now_s
                words = self._host.last_words().strip().splitlines()
                self._say(
                    f"waiting for the engine at {self.url} ({now_s - began_s:.0f} s)"
                    + (f": {words[-1].strip()[:100]}" if words else "")
                )
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _until_lost(self) -> tuple[str, bool]:
        """Why it was lost, and whether its process may still hang around."""
        gone = asyncio.ensure_future(self._host.gone())
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({gone, watching, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                # Its end says more than a broken connection, and comes a little later.
                await asyncio.wait({gone}, timeout=ENDING_S)
            if gone.done():
                return gone.result() + self._host.last_words(), False
            if watching.done():
                return watching.result(), True
            return self._lost.result(), False
        finally:
            for task in (gone, watching):
                task.cancel()
            await asyncio.wait({gone, watching})

    async def _watch(self) -> str:
        missed = 0
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self._state is not State.SERVING:
                continue  # reading weights, it may not answer
            try:
                await self._server.health()
                missed = 0
            except EngineError as error:
                missed += 1
                if missed >= MAX_MISSED and self._state is State.SERVING:
                    return str(error)

    def _lose(self, lost: asyncio.Future[str], reason: str) -> None:
        # A life that ended before must not take the next one along.
        if not lost.done():
            lost.set_result(reason)
        if lost is self._lost:
            self.trouble = reason
            self._become(State.DOWN)

    def _fell(self, reason: str) -> None:
        self._lose(self._lost, reason)
        self._events.emit("engine.down", url=self.url, reason=reason)

    def _become(self, state: State) -> None:
        self._state = state
        self._changed()


async def _ended(task: asyncio.Task[Sample]) -> None:
    """Cancel a task, wait for its end, and forget how it ended."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
