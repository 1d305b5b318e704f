"""What the gateway adds to a turn of an engine with a fixed latency, and what a session takes.

    python benchmarks/gateway_overhead.py [--latency 1] [--turns 20] [--sessions 1 64 512]

The gateway runs in a process of its own. Sessions start spread over one latency, as
episodes do, and each talks turn by turn over a kept-alive connection. The overhead of a
turn is what its caller waits beyond what a caller of the bare engine waits, with as many
callers at once. Every result is a line with the word ``ratio``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from bench_gateway import Bench, SlowEngine, grown, observation

from palestra.policy.gateway import Gateway, running_gateway
from palestra.records import SamplingParams

TARGET_MS = 3.0  # what the gateway may add to a turn


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
        head = (
            f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
        content = await self._reader.readexactly(length)
        assert answer.startswith(b"http/1.1 200"), content
        return orjson.loads(content)


async def episode(url: str, num_turns: int, start_s: float) -> list[float]:
    """Talk for ``num_turns`` in one session; seconds of each turn."""
    await asyncio.sleep(start_s)
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


async def bare(engine: SlowEngine, num_turns: int, start_s: float) -> list[float]:
    """The same without a gateway."""
    await asyncio.sleep(start_s)
    prompt, sampling, times_s = list(range(4096)), SamplingParams(), []
    for _ in range(num_turns):
        started_s = time.perf_counter()
        await engine.generate(prompt, sampling)
        times_s.append(time.perf_counter() - started_s)
    return times_s


async def overhead(url: str, pid: int, latency_s: float, num_turns: int, sessions: int) -> None:
    starts_s = [latency_s * number / sessions for number in range(sessions)]
    engine = SlowEngine((1,), latency_s=latency_s)
    without = await asyncio.gather(*(bare(engine, num_turns, s) for s in starts_s))
    before_s = cpu_s(pid)
    with_it = await asyncio.gather(*(episode(url, num_turns, s) for s in starts_s))
    cpu_ms = (cpu_s(pid) - before_s) / (sessions * num_turns) * 1e3
    bare_ms = statistics.median(t for times in without for t in times) * 1e3
    waits_ms = sorted(t * 1e3 - bare_ms for times in with_it for t in times)
    median_ms, p95_ms = statistics.median(waits_ms), waits_ms[int(len(waits_ms) * 0.95)]
    print(
        f"gateway overhead, {sessions} at once, {num_turns} turns, engine {latency_s:g} s: "
        f"{median_ms:.2f} ms per turn (95 %: {p95_ms:.2f}), {cpu_ms:.2f} ms of CPU, "
        f"ratio to the target of {TARGET_MS:g} ms {median_ms / TARGET_MS:.2f}",
        flush=True,
    )


def cpu_s(pid: int) -> float:
    """Seconds of processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(bench: Bench, num_ids: int) -> None:
    sample = grown(bench, 21)  # the last turn is not answered
    num_turns = num_ids * len(sample.turns) // sample.num_ids + 1
    tracemalloc.start()
    tree = grown(bench, num_turns)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    turns = tree.turns
    naive = sum(36 * (len(t.context_ids) + len(t.sampled_ids)) for t in turns)
    naive += sum(32 * len(t.sampled_ids) for t in turns)
    print(
        f"ledger memory, a session of {tree.num_ids} ids in {len(turns)} turns: "
        f"{held / 2**20:.2f} MiB, {held / tree.num_ids:.1f} bytes an id; tuples of numbers would "
        f"take {naive / 2**20:.2f} MiB, ratio {naive / held:.1f}"
    )


async def serve(latency_s: float) -> None:
    bench = Bench.build()
    engine = SlowEngine(bench.answer_ids, latency_s=latency_s)
    await serve_gateway(Gateway(engine, bench.renderer, bench.tokenizer, model_name="m"))


async def serve_gateway(gateway: Gateway) -> None:
    """Be a gateway's process: print the URL, and end with the input."""
    async with running_gateway(gateway) as url:
        print(url, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        await reader.read()


@contextmanager
def server(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The URL and the pid of a gateway in a process of its own."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.stdin.close()


async def measure(options: argparse.Namespace) -> None:
    command = (sys.executable, __file__, "--serve", "--latency", str(options.latency))
    with server(command) as (url, pid):
        await episode(url, 3, 0.0)  # warm up
        for sessions in options.sessions:
            await overhead(url, pid, options.latency, options.turns, sessions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of the engine")
    parser.add_argument("--turns", type=int, default=20, help="turns of an episode")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 64, 512], help="at once")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.latency))
        return
    asyncio.run(measure(options))
    memory(Bench.build(), 32_000)


if __name__ == "__main__":
    main()
