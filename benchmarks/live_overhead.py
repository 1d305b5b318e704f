"""What the gateway adds to a turn of a live server, in rounds that alternate with bare calls.

The gateway runs in a process of its own. Both sides sample as many ids, greedily, from the
same prompts, and begin each round with an empty prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
from gateway_overhead import TARGET_MS, Client, cpu_s, serve_gateway, server
from live_parts import Bench, Plan, Spoken, Talked, shape, take_all, talk

from palestra.policy.engines.host import Elsewhere
from palestra.policy.gateway import Gateway

OPENING_TURNS = 2
FLUSH_TRIES = 20
START_TIMEOUT_S = 60.0
NEVER = -100.0
"""Added to the logits of what would end an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Milliseconds of every turn, and their means by round."""

    bare_ms: tuple[float, ...]
    gateway_ms: tuple[float, ...]
    added_by_round_ms: tuple[float, ...]
    cpu_ms: float
    num_short: int


async def overhead(bench: Bench, at_once: int) -> AsyncGenerator[dict[str, Any], None]:
    """Alternate rounds through the gateway and bare, with so many sessions at once."""
    options = bench.options
    command = (sys.executable, __file__, "--engine", options.engine)
    more = ("--model", str(options.model), "--max-context", str(options.max_context))
    with server((*command, *more)) as (url, pid):
        found = await _rounds(bench, url, pid, at_once)
    bare, gateway = shape(found.bare_ms), shape(found.gateway_ms)
    assert bare is not None
    assert gateway is not None
    added = {name: round(gateway[name] - bare[name], 2) for name in bare}
    yield {
        "at_once": at_once,
        "turns": len(found.gateway_ms),
        "new_ids": options.fixed_ids,
        "answers_of_other_length": found.num_short,
        "bare_ms": bare,
        "gateway_ms": gateway,
        "added_ms": added,
        "added_mean_by_round_ms": found.added_by_round_ms,
        "gateway_cpu_ms_per_turn": round(found.cpu_ms, 2),
        "ratio_to_target_of_3_ms": round(added["mean"] / TARGET_MS, 2),
    }


async def _rounds(bench: Bench, url: str, pid: int, at_once: int) -> Rounds:
    options = bench.options
    plan = Plan(
        sessions=at_once,
        turns=options.overhead_turns,
        new_tokens=(options.fixed_ids, options.fixed_ids),
    ).shortened(options.text_share)
    stops = {str(token): NEVER for token in bench.renderer.get_stop_token_ids()}
    extra = {"temperature": 0.0, "logit_bias": stops}
    await _flush(bench)
    # Kernels are compiled and prompts become known before anything counts.
    warm = replace(plan, turns=OPENING_TURNS) if options.overhead_turns > OPENING_TURNS else plan
    first = await _through(url, warm, extra, 0.0)
    latency_s = statistics.median(wait for one in first for wait in one.waits_s)
    bare: list[float] = []
    through: list[float] = []
    added: list[float] = []
    cpu = num_short = 0.0
    for _ in range(options.rounds):
        await _flush(bench)
        began_s = cpu_s(pid)
        spoken = await _through(url, plan, extra, latency_s)
        cpu += cpu_s(pid) - began_s
        talked = await take_all(url, spoken)
        await _flush(bench)
        ours = [1e3 * wait for one in talked for wait in one.waits_s]
        waits, short = await _bare(bench, talked, stops, latency_s)
        added.append(round(statistics.fmean(ours) - statistics.fmean(waits), 2))
        through, bare, num_short = through + ours, bare + waits, num_short + short
    return Rounds(
        bare_ms=tuple(bare),
        gateway_ms=tuple(through),
        added_by_round_ms=tuple(added),
        cpu_ms=1e3 * cpu / len(through),
        num_short=int(num_short),
    )


async def _through(
    url: str, plan: Plan, extra: dict[str, Any], latency_s: float
) -> tuple[Spoken, ...]:
    """Sessions that start spread over one latency, as episodes do."""

    async def one(number: int) -> Spoken:
        await asyncio.sleep(latency_s * number / plan.sessions)
        return await talk(url, number, plan, extra=extra, purpose="evaluation")

    return tuple(await asyncio.gather(*(one(number) for number in range(plan.sessions))))


async def _bare(
    bench: Bench, talked: Sequence[Talked], stops: dict[str, float], latency_s: float
) -> tuple[list[float], int]:
    """The same prompts sent to the server itself: milliseconds, and answers of other lengths."""
    fixed = bench.options.fixed_ids
    params = {"temperature": 0.0, "max_new_tokens": fixed, "logit_bias": stops}
    more = {"sampling_params": params, "return_logprob": True}
    bodies = [
        [
            orjson.dumps({"input_ids": one.trace.prompt_ids(turn), **more})
            for turn in one.trace.turns
        ]
        for one in talked
    ]

    async def one(number: int) -> list[tuple[float, int]]:
        await asyncio.sleep(latency_s * number / len(bodies))
        turns = []
        async with Client.to(bench.engine) as client:
            for body in bodies[number]:
                began_s = time.perf_counter()
                answer = await client.post("/generate", body)
                turns.append((1e3 * (time.perf_counter() - began_s), len(answer["output_ids"])))
        return turns

    played = await asyncio.gather(*(one(number) for number in range(len(bodies))))
    lengths = [length for turns in played for _, length in turns]
    lengths += [len(turn.sampled_ids) for one in talked for turn in one.trace.turns]
    return [wait for turns in played for wait, _ in turns], sum(n != fixed for n in lengths)


async def _flush(bench: Bench) -> None:
    """Empty the prefix cache, which the server does only when nothing runs."""
    async with httpx.AsyncClient(base_url=bench.engine, timeout=30, trust_env=False) as http:
        for _ in range(FLUSH_TRIES):
            if (await http.post("/flush_cache")).status_code in (200, 404):
                return
            await asyncio.sleep(0.1)


async def _serve(options: argparse.Namespace) -> None:
    bench = Bench.of(options, Elsewhere())
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(START_TIMEOUT_S):  # who started us waits without a limit
            fleet = await stack.enter_async_context(bench.fleet(None))
        await serve_gateway(Gateway(fleet, bench.renderer, bench.tokenizer, model_name="policy"))


def main() -> None:
    """Serve a gateway in front of a server, until the input ends."""
    parser = argparse.ArgumentParser(description="the gateway's process of live_engine.py")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--max-context", type=int, required=True)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
