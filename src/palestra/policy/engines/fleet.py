"""Several servers as one engine: routed, given new weights, and kept alive.

A conversation goes on at the server that answered it last, whose prefix cache holds it; a
new one goes to the server with the least in flight. What a lost server was answering is asked
again elsewhere: a request changes nothing until it is answered. What a server sampled before
it was told to stop for new weights stays as a segment of its version.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from palestra.errors import EngineError
from palestra.events import EventSink, NullEvents
from palestra.policy.engines.affinity import Affinity
from palestra.policy.engines.host import Host
from palestra.policy.engines.member import Member, State, Weights
from palestra.policy.engines.remote import Continuation, Sample, Server, ServerBusy, ServerGone
from palestra.records import Generation, SamplingParams

MAX_REPLAYS = 8
"""Servers that may be lost over one request: one that kills servers must not kill them all."""
MAX_ABORTS = 64
BUSY_DELAY_S = 0.5
CROWDED, CROWDED_TIMES = 8, 2
"""A conversation leaves its server when that has so many more requests than another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A server and what runs it."""

    server: Server
    host: Host


class Fleet:
    """Servers of one policy as an engine; an async context manager.

    Entering brings all servers up and gives them the starting weights.

    Args:
        places: the servers.
        weights: Hugging Face folder of the starting weights, which servers read themselves.
        version: of the starting weights.
        max_context: most ids of a prompt and its samples.
        publishing: ``at_once``, or ``in_turn``: the others sample on under the old weights.
        outage_s: seconds that a request waits while no server can serve.
        events: told of servers that come and go, and of weights.
        say: told how a start goes on, in one line.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        weights: Path,
        version: int = 0,
        max_context: int,
        publishing: Literal["at_once", "in_turn"] = "at_once",
        outage_s: float = 600.0,
        events: EventSink | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._places = tuple(places)
        self._max_context = max_context
        self._publishing = publishing
        self._outage_s = outage_s
        self._events = events or NullEvents()
        self._say = say or _silent
        # Servers that others publish to as well must not be mistaken for ours.
        self._token = secrets.token_hex(4)
        self._target = self._named(weights, version)
        self._affinity = Affinity()
        self._members: tuple[Member, ...] = ()
        self._keeping: tuple[asyncio.Task[None], ...] = ()
        self._change = asyncio.Event()
        self._one_publisher = asyncio.Lock()

    @property
    def version(self) -> int:
        """Version of the weights published last."""
        return self._target.version

    @property
    def max_context(self) -> int:
        """Most ids that a prompt and its samples may have together."""
        return self._max_context

    @property
    def sampling_options(self) -> frozenset[str]:
        """Fields of :class:`SamplingParams` that all servers know beyond what they must."""
        known: list[frozenset[str]] = [
            getattr(p.server, "sampling_options", frozenset()) for p in self._places
        ]
        return frozenset.intersection(*known) if known else frozenset()

    @property
    def members(self) -> tuple[Member, ...]:
        """The servers; none before entering."""
        return self._members

    async def __aenter__(self) -> Fleet:
        """Bring up all servers.

        Raises:
            EngineError: one of them did not come up, or did not take the weights.
        """
        self._members = tuple(
            Member(
                place.server,
                place.host,
                target=lambda: self._target,
                changed=self._announce,
                events=self._events,
                say=self._say,
            )
            for place in self._places
        )
        self._keeping = tuple(asyncio.create_task(member.keep()) for member in self._members)
        starts = [asyncio.ensure_future(_first(m.up, t)) for m, t in self._kept()]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            await self.aclose()
            raise
        finally:
            for start in starts:
                start.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the servers that are ours, and leave the others."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        self._keeping = ()
        for member in self._members:
            if member.up.done() and not member.up.cancelled():
                member.up.exception()  # seen
        await asyncio.gather(*(place.host.down() for place in self._places))
        for place in self._places:
            await place.server.aclose()

    # --- sampling ---------------------------------------------------------------

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """Sample one continuation of ``prompt_ids``; cancelling ends it at the server too.

        Raises:
            ContextOverflow: ``prompt_ids`` leave no room for a single id.
            EngineError: no server serves, or every one that did was lost over this request.
        """
        growing = Continuation(prompt_ids, sampling, self._max_context)
        for _ in range(MAX_ABORTS):
            member, sample, version = await self._sample(growing, sampling)
            asked = tuple(growing.ids)
            generation = growing.add(sample, version)
            if len(self._members) > 1:  # where else could it go on
                self._affinity.note(asked, growing.ids, member.url)
            if generation is not None:
                return generation
        raise EngineError(f"the engine aborted one answer {MAX_ABORTS} times")

    async def _sample(
        self, growing: Continuation, sampling: SamplingParams
    ) -> tuple[Member, Sample, int]:
        """One sample of whichever server can give it."""
        replays = 0
        until_s = time.monotonic() + self._outage_s
        while True:
            member = await self._member_for(growing.ids, until_s)
            try:
                sample, version = await member.sample(
                    growing.ids, sampling, max_new_tokens=growing.left
                )
                return member, sample, version
            except ServerBusy:
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(BUSY_DELAY_S)
            except ServerGone as error:
                replays += 1
                until_s = time.monotonic() + self._outage_s
                if replays > MAX_REPLAYS:
                    raise EngineError(
                        f"{replays} servers were lost over one request: {error.message}"
                    ) from error
                self._affinity.leave(member.url)
                self._events.emit(
                    "engine.replayed", url=member.url, num_prompt=len(growing.ids), number=replays
                )

    async def _member_for(self, ids: Sequence[int], until_s: float) -> Member:
        while (member := self._pick(ids)) is None:
            change = self._change
            try:
                async with asyncio.timeout(max(0.0, until_s - time.monotonic())):
                    await change.wait()
            except TimeoutError:
                raise EngineError(self._why_nobody_serves()) from None
            self._see_keepers()
        return member

    def _pick(self, ids: Sequence[int]) -> Member | None:
        """The server of this conversation, else the one with the least to do; none: wait."""
        serving = [member for member in self._members if member.state is State.SERVING]
        least = min(serving, key=lambda m: (m.in_flight, m.num_taken), default=None)
        known = self._affinity.find(ids)
        for member in self._members:
            if member.url != known or member.state is State.DOWN:
                continue
            if member.state is State.LOADING:
                return None  # weights are read in less time than a long prefix is computed
            # After an outage the others have all conversations, and the one that is back none.
            is_crowded = least and member.in_flight > CROWDED + CROWDED_TIMES * least.in_flight
            return least if is_crowded else member
        return least

    # --- weights ----------------------------------------------------------------

    async def publish(self, weights: Path, version: int) -> None:
        """Serve the weights of a folder as ``version``, which must rise.

        A server that does not take them is lost and given them again; one that is down
        gets them when it comes up.

        Raises:
            EngineError: ``version`` does not rise, or no server that served took the weights;
                the old ones are then given back to all.
        """
        async with self._one_publisher:
            before = self._target
            if version <= before.version:
                raise EngineError(f"version {version} does not rise above {before.version}")
            self._target = self._named(weights, version)
            began_s = time.monotonic()
            try:
                pauses, failures = await self._load_all(self._target)
            except BaseException:
                self._target = before
                raise
            if failures and not pauses:
                self._target = before
                raise next(iter(failures.values()))
            self._events.emit(
                "engine.published",
                version=version,
                seconds=round(time.monotonic() - began_s, 4),
                pauses_s={url: round(pause_s, 4) for url, pause_s in pauses.items()},
                failed={url: str(error) for url, error in failures.items()},
            )

    async def _load_all(self, weights: Weights) -> tuple[dict[str, float], dict[str, EngineError]]:
        """Seconds of pause by server, and what failed."""
        pauses: dict[str, float] = {}
        failures: dict[str, EngineError] = {}

        async def load(member: Member) -> None:
            if member.state is not State.SERVING:
                return
            try:
                pauses[member.url] = await member.load(weights)
            except EngineError as error:
                failures[member.url] = error

        if self._publishing == "at_once":
            await asyncio.gather(*(load(member) for member in self._members))
        else:
            for member in self._members:
                await load(member)
        return pauses, failures

    def _named(self, folder: Path, version: int) -> Weights:
        return Weights(folder=folder.absolute(), version=version, stamp=f"{version}-{self._token}")

    # --- health -----------------------------------------------------------------

    async def health(self) -> None:
        """Return when a server serves or reads weights.

        Raises:
            EngineError: all are down.
        """
        self._see_keepers()
        if all(member.state is State.DOWN for member in self._members):
            raise EngineError(self._why_nobody_serves())

    def _why_nobody_serves(self) -> str:
        troubles = [f"{m.url}: {m.trouble}" for m in self._members if m.state is State.DOWN]
        return "no engine serves; " + ("; ".join(troubles) or "they read weights")

    def _kept(self) -> list[tuple[Member, asyncio.Task[None]]]:
        return list(zip(self._members, self._keeping, strict=True))

    def _see_keepers(self) -> None:
        """A mistake of ours must not look like an engine that stays away."""
        for task in self._keeping:
            if task.done() and not task.cancelled():
                task.result()

    def _announce(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


async def _first(up: asyncio.Future[None], keeping: asyncio.Task[None]) -> None:
    """Wait for the first start of a server, or for the end of whoever keeps it."""
    await asyncio.wait({up, keeping}, return_when=asyncio.FIRST_COMPLETED)
    if keeping.done():
        keeping.result()
    up.result()


def _silent(_: str) -> None:
    """Say nothing."""
