"""What the benchmarks on a live server share: the server, its wire, and sessions that talk."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from bench_gateway import SOURCE
from gateway_overhead import Client

from palestra.errors import EngineError
from palestra.events import MemoryEvents
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.policy.engines.fleet import Fleet, Place
from palestra.policy.engines.host import Elsewhere, Host
from palestra.policy.engines.processes import Launched
from palestra.policy.engines.protocol import Engine
from palestra.policy.engines.remote import Answer
from palestra.policy.engines.sglang import SGLangServer
from palestra.policy.gateway import Gateway, running_gateway
from palestra.policy.rendering import Renderer, load_renderer
from palestra.records import Segment, Trace
from palestra.run.policy import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The server, its model, and what reads and writes its ids.

    Attributes:
        engine: ``http://HOST:PORT`` of the server.
        host: runs it.
        model: Hugging Face folder that it started from.
        options: of the command line.
    """

    engine: str
    host: Host
    model: Path
    tokenizer: Any
    renderer: Renderer
    options: argparse.Namespace

    @classmethod
    def of(cls, options: argparse.Namespace, host: Host) -> Bench:
        """Load the tokenizer of the model."""
        tokenizer = load_tokenizer(options.model)
        return cls(
            engine=options.engine,
            host=host,
            model=options.model,
            tokenizer=tokenizer,
            renderer=load_renderer("chatml", tokenizer),
            options=options,
        )

    def fleet(self, wire: Wire | None, *, host: Host | None = None) -> Fleet:
        """The server as the engine of a run; with ``host`` it is restarted when it dies."""
        server = SGLangServer(self.engine, listener=wire.hear if wire else None)
        return Fleet(
            [Place(server=server, host=host or Elsewhere())],
            weights=self.model,
            max_context=self.options.max_context,
            events=wire.events if wire else None,
        )

    @asynccontextmanager
    async def gateway(self, engine: Engine) -> AsyncIterator[str]:
        """A gateway in front of ``engine``; its root URL."""
        gateway = Gateway(engine, self.renderer, self.tokenizer, model_name="policy")
        async with running_gateway(gateway) as url:
            yield url


# --- the server -------------------------------------------------------------------


async def until_healthy(url: str, host: Host, timeout_s: float) -> None:
    """Wait until the server answers.

    Raises:
        EngineError: it does not in time, with its last words.
    """
    server = SGLangServer(url)
    until_s = time.monotonic() + timeout_s
    try:
        while True:
            try:
                return await server.health()
            except EngineError as error:
                is_dead = isinstance(host, Launched) and host.pid is None
                if is_dead or time.monotonic() > until_s:
                    raise EngineError(f"{error.message}{host.last_words()}") from error
            await asyncio.sleep(0.5)
    finally:
        await server.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class RawAnswer:
    """What the server said of one sample, in its own words."""

    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that was answered; ``time_s`` is in Unix seconds."""

    path: str
    status: int
    time_s: float
    stamp: str | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """All that passed between us and a server, read off the wire, and what the fleet told."""

    calls: list[Call] = field(default_factory=list)
    events: MemoryEvents = field(default_factory=MemoryEvents)
    answers: dict[bytes, list[RawAnswer]] = field(default_factory=dict)

    def hear(self, said: Answer) -> None:
        """Keep one answer."""
        stamp = None
        if said.path == "/generate" and said.is_success:
            meta = (answer := orjson.loads(said.content))["meta_info"]
            stamp = meta.get("weight_version")
            asked = orjson.loads(said.sent)["input_ids"]
            raw = RawAnswer(
                output_ids=tuple(answer["output_ids"]),
                logprobs=tuple(entry[0] for entry in meta.get("output_token_logprobs") or ()),
                cached_tokens=meta.get("cached_tokens"),
            )
            self.answers.setdefault(prompt_key(asked), []).append(raw)
        if said.path == "/update_weights_from_disk":
            stamp = orjson.loads(said.sent)["weight_version"]
        self.calls.append(Call(path=said.path, status=said.status, time_s=time.time(), stamp=stamp))

    def said(self, prompt_ids: Sequence[int], segments: Sequence[Segment]) -> bool:
        """Whether the server answered these segments, id for id and logprob for logprob."""
        before = list(prompt_ids)
        for segment in segments:
            raws = self.answers.get(prompt_key(before), [])
            wanted = (segment.ids, segment.logprobs)
            if not any((raw.output_ids, raw.logprobs) == wanted for raw in raws):
                return False
            before += segment.ids
        return True


def prompt_key(ids: Sequence[int]) -> bytes:
    """A prompt in 16 bytes."""
    return hashlib.blake2b(array("i", ids).tobytes(), digest_size=16).digest()


# --- sessions ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sessions like those of an agent in a shell; lengths in characters, answers in ids."""

    sessions: int
    turns: int
    system_chars: int = 5200
    instance_chars: int = 3500
    observation_chars: tuple[int, int] = (350, 1400)
    new_tokens: tuple[int, int] = (64, 128)

    def shortened(self, share: float) -> Plan:
        """The same with texts of a share of their length."""
        low, high = self.observation_chars
        return replace(
            self,
            system_chars=int(share * self.system_chars),
            instance_chars=int(share * self.instance_chars),
            observation_chars=(int(share * low), int(share * high)),
        )


class Progress:
    """Counts turns over all sessions, for what has to happen in the middle."""

    def __init__(self) -> None:
        self._done = 0
        self._reached: dict[int, asyncio.Event] = {}

    def step(self) -> None:
        """One more."""
        self._done += 1
        for number, reached in self._reached.items():
            if self._done >= number:
                reached.set()

    async def until(self, number: int, talking: asyncio.Task[Any]) -> None:
        """Wait until so many turns are done, or nobody talks any more."""
        reached = self._reached.setdefault(number, asyncio.Event())
        if self._done >= number:
            return
        waiting = asyncio.create_task(reached.wait())
        try:
            await asyncio.wait({waiting, talking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A session that was played to its end, its trace still in the ledger."""

    session_id: str
    messages: tuple[dict[str, str], ...]
    waits_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Talked:
    """A session that was played to its end."""

    trace: Trace
    messages: tuple[dict[str, str], ...]
    waits_s: tuple[float, ...]


def opening(number: int, plan: Plan) -> list[dict[str, str]]:
    """The system prompt that all sessions share, and the instance that is a session's own."""
    system = (
        "You are a helpful assistant that can interact with a computer.\n"
        "Answer with a THOUGHT and exactly one command in a ```mswea_bash_command block.\n\n"
        + SOURCE[: plan.system_chars]
    )
    start = number * 997 % (len(SOURCE) - plan.instance_chars)
    instance = f"Issue {number}: fix this.\n\n" + SOURCE[start : start + plan.instance_chars]
    return [{"role": "system", "content": system}, {"role": "user", "content": instance}]


def observation(draw: random.Random, plan: Plan) -> dict[str, str]:
    """What the shell printed."""
    length = draw.randint(*plan.observation_chars)
    start = draw.randrange(len(SOURCE) - length)
    text = f"<returncode>0</returncode>\n<output>\n{SOURCE[start : start + length]}</output>"
    return {"role": "user", "content": text}


async def talk(
    url: str,
    number: int,
    plan: Plan,
    *,
    extra: dict[str, Any] | None = None,
    purpose: str = "training",
    on_turn: Callable[[], None] = lambda: None,
) -> Spoken:
    """Play one session through the gateway at ``url``."""
    draw = random.Random(number)
    messages = opening(number, plan)
    waits_s = []
    async with Client.to(url) as client:
        opened = await client.post("/sessions", orjson.dumps({"purpose": purpose}))
        path = urlsplit(opened["base_url"]).path + "/chat/completions"
        for _ in range(plan.turns):
            body = {"model": "policy", "messages": messages, "temperature": 1.0, **(extra or {})}
            body["max_tokens"] = draw.randint(*plan.new_tokens)
            sent = orjson.dumps(body)
            began_s = time.perf_counter()
            answer = await client.post(path, sent)
            waits_s.append(time.perf_counter() - began_s)
            said = answer["choices"][0]["message"]["content"] or ""
            messages += [{"role": "assistant", "content": said}, observation(draw, plan)]
            on_turn()
    return Spoken(
        session_id=opened["session_id"], messages=tuple(messages[:-1]), waits_s=tuple(waits_s)
    )


async def take_all(url: str, spoken: Sequence[Spoken]) -> list[Talked]:
    """Take the traces of sessions that ended."""
    async with GatewayClient(url) as ledger:
        return [
            Talked(
                trace=await ledger.take(one.session_id), messages=one.messages, waits_s=one.waits_s
            )
            for one in spoken
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of sessions that were played at once, and how long that took."""

    talked: list[Talked]
    errors: list[BaseException]
    took_s: float


async def talk_all(url: str, plan: Plan, progress: Progress) -> Outcome:
    """Play all sessions at once, and take their traces afterwards."""
    began_s = time.perf_counter()
    ended = await asyncio.gather(
        *(talk(url, n, plan, on_turn=progress.step) for n in range(plan.sessions)),
        return_exceptions=True,
    )
    took_s = time.perf_counter() - began_s
    return Outcome(
        talked=await take_all(url, [one for one in ended if isinstance(one, Spoken)]),
        errors=[one for one in ended if isinstance(one, BaseException)],
        took_s=took_s,
    )


# --- numbers ----------------------------------------------------------------------


def shape(values: Sequence[float], digits: int = 2) -> dict[str, float] | None:
    """Mean, median and 95 % of some numbers; ``None`` of none."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "mean": round(statistics.fmean(ordered), digits),
        "p50": round(statistics.median(ordered), digits),
        "p95": round(ordered[int(len(ordered) * 0.95)], digits),
    }


def failures(errors: Sequence[BaseException]) -> dict[str, Any]:
    """How many failed, and of what the first did."""
    return {"failed": len(errors), "first_failure": repr(errors[0])[:300] if errors else None}
