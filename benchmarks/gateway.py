"""What the gateway costs: time per turn above the engine, memory of a session, bridging.

    python benchmarks/gateway.py [--turns 30] [--sessions 64]

The engine answers at once, so all that is measured is HTTP, reading the
request, placing it in the session's tree, bridging, decoding and answering.
Client and server share one process and one core. Every result is a line with
the word ``ratio``.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from transformers import AutoTokenizer

from palestra.policy.gateway import Gateway, running_gateway
from palestra.policy.gateway.history import Conversation
from palestra.policy.gateway.tree import TurnTree
from palestra.policy.rendering import Renderer, load_renderer
from palestra.policy.tiny import make_tiny_model
from palestra.records import FinishReason, Generation, Message, SamplingParams, Segment

TARGET_MS = 3.0  # what the gateway may add to a turn
SOURCE = inspect.getsource(argparse)  # text like that which an agent reads
OBSERVATION_CHARS = 640
ANSWER = "THOUGHT: look at the parser\n\n```mswea_bash_command\nsed -n '1,80p' argparse.py\n```"


class InstantEngine:
    """Answers with the same ids at once."""

    max_context = 1 << 20
    version = 0

    def __init__(self, ids: Sequence[int]) -> None:
        segment = Segment(ids=tuple(ids), logprobs=(-0.5,) * len(ids), policy_version=0)
        self.answer = Generation(segments=(segment,), finish_reason=FinishReason.STOP)

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """The answer."""
        return self.answer

    async def publish(self, weights: Path, version: int) -> None:
        """Nothing to publish."""

    async def health(self) -> None:
        """Always well."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The parts that every measurement uses."""

    tokenizer: Any
    renderer: Renderer
    engine: InstantEngine

    @classmethod
    def build(cls) -> Bench:
        """Make a tokenizer that has learnt the text it will read."""
        with tempfile.TemporaryDirectory() as folder:
            make_tiny_model(Path(folder), texts=[SOURCE], vocab_size=2048, hidden_size=8)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.encode(ANSWER, add_special_tokens=False)
        renderer = load_renderer("chatml", tokenizer)
        return cls(tokenizer, renderer, InstantEngine([*ids, renderer.get_stop_token_ids()[0]]))


def observation(number: int) -> str:
    start = number * 97 % (len(SOURCE) - OBSERVATION_CHARS)
    return SOURCE[start : start + OBSERVATION_CHARS]


class Client:
    """One kept-alive connection and next to no work of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Client]:
        """Connect to a server."""
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def post(self, path: str, body: bytes) -> Any:
        """Send a JSON body; the JSON of the answer, which must be a 200."""
        head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
        content = await self._reader.readexactly(length)
        assert answer.startswith(b"http/1.1 200"), content
        return orjson.loads(content)


async def episode(url: str, num_turns: int) -> list[float]:
    """Talk for ``num_turns`` in one session; seconds of each turn."""
    times_s = []
    async with Client.to(url) as client:
        opened = await client.post("/sessions", b"{}")
        path = urlsplit(opened["base_url"]).path + "/chat/completions"
        messages: list[dict[str, str]] = [{"role": "user", "content": observation(0)}]
        for number in range(1, num_turns + 1):
            body = orjson.dumps({"model": "m", "messages": messages})
            started_s = time.perf_counter()
            answer = await client.post(path, body)
            times_s.append(time.perf_counter() - started_s)
            messages.append(
                {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
            )
            messages.append({"role": "user", "content": observation(number)})
    return times_s


async def bare_s(bench: Bench, num_calls: int) -> float:
    prompt, sampling = list(range(4096)), SamplingParams()
    started_s = time.perf_counter()
    for _ in range(num_calls):
        await bench.engine.generate(prompt, sampling)
    return (time.perf_counter() - started_s) / num_calls


async def overhead(bench: Bench, num_turns: int, num_sessions: int) -> None:
    bare = await bare_s(bench, 1000)
    gateway = Gateway(bench.engine, bench.renderer, bench.tokenizer, model_name="m")
    async with running_gateway(gateway) as url:
        await episode(url, 5)  # warm up
        for sessions in (1, num_sessions):
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            times_s = await asyncio.gather(*(episode(url, num_turns) for _ in range(sessions)))
            wall_s = time.perf_counter() - started_s
            cpu_ms = (time.process_time() - started_cpu_s) / (sessions * num_turns) * 1e3
            median_ms = statistics.median(t for session in times_s for t in session) * 1e3
            # Alone, a turn costs what its caller waits; at once, its share of the wall clock.
            alone = sessions == 1
            each_ms = (median_ms if alone else wall_s / (sessions * num_turns) * 1e3) - bare * 1e3
            print(
                f"gateway overhead, {sessions} at once, {num_turns} turns: {each_ms:.2f} ms a turn "
                f"({cpu_ms:.2f} ms of CPU, median wait {median_ms:.2f} ms, bare engine "
                f"{bare * 1e3:.4f} ms), "
                f"ratio to the target of {TARGET_MS:g} ms {each_ms / TARGET_MS:.2f}"
            )


def conversation(num_turns: int) -> Conversation:
    messages = [Message(role="user", content=observation(0))]
    for number in range(1, num_turns):
        messages += [
            Message(role="assistant", content=ANSWER),
            Message(role="user", content=observation(number)),
        ]
    return Conversation(messages=tuple(messages))


def grown(bench: Bench, num_turns: int) -> TurnTree:
    """A session's tree before its last turn is asked."""
    tree, whole = TurnTree(bench.renderer), conversation(num_turns)
    answer = Message(role="assistant", content=ANSWER)
    for turn in range(1, num_turns):
        asked = Conversation(messages=whole.messages[: 2 * turn - 1])
        # A copy per turn, as an engine makes its ids anew each time.
        sampled = orjson.loads(orjson.dumps(bench.engine.answer.ids))
        logprobs = tuple(-0.5 - i * 1e-6 for i in range(len(sampled)))
        segment = Segment(ids=tuple(sampled), logprobs=logprobs, policy_version=0)
        generation = Generation(segments=(segment,), finish_reason=FinishReason.STOP)
        tree.append(tree.place(asked), generation, answer=answer, temperature=1.0, duration_s=0.0)
    return tree


def memory(bench: Bench, num_ids: int) -> None:
    sample = grown(bench, 21)  # the last turn is not answered
    num_turns = num_ids * len(sample.turns) // sample.num_ids + 1
    tracemalloc.start()
    tree = grown(bench, num_turns)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    prompts = sum(
        sum(len(t.context_ids) + len(t.sampled_ids) for t in tree.turns[:n])
        for n in range(1, len(tree.turns) + 1)
    )
    print(
        f"ledger memory, a session of {tree.num_ids} ids in {len(tree.turns)} turns: "
        f"{held / 2**20:.2f} MiB, {held / tree.num_ids:.0f} bytes an id; whole prompts would be "
        f"{prompts} ids, ratio {prompts / tree.num_ids:.1f}"
    )


def bridging(bench: Bench, num_turns: int) -> None:
    tree, whole = grown(bench, num_turns), conversation(num_turns)
    placed = tree.place(whole)
    assert placed.parent == num_turns - 2
    bridged_s = _best_s(lambda: tree.place(whole))
    rendered_s = _best_s(lambda: TurnTree(bench.renderer).place(whole))
    print(
        f"bridging at {num_turns} turns ({len(placed.prompt_ids)} ids): {bridged_s * 1e3:.2f} ms, "
        f"full render {rendered_s * 1e3:.2f} ms, ratio {rendered_s / bridged_s:.1f}"
    )


def _best_s(work: Any, *, repeats: int = 7) -> float:
    times_s = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - started_s)
    return min(times_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=30, help="turns of an episode")
    parser.add_argument("--sessions", type=int, default=64, help="sessions at once")
    options = parser.parse_args()
    bench = Bench.build()
    asyncio.run(overhead(bench, options.turns, options.sessions))
    memory(bench, 32_000)
    for num_turns in (10, 50, 128):
        bridging(bench, num_turns)


if __name__ == "__main__":
    main()
