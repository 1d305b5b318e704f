"""How far an SGLang server's logprobs are from those of the model that would be trained.

    python benchmarks/engine_fidelity.py --engine http://127.0.0.1:30000 --model FOLDER

Samples continuations through our engine client and computes their logprobs again with
transformers, in one forward pass each, which is what a trainer compares them with. Then it
looks at what an engine must do for training: the ids that it says are those that it answers
raw requests with, sampling goes on after an abort, weights get a new version in the middle of
an answer, a prompt that is too long is said to be, and a call that is cancelled ends there too.
Prints a line with the word ratio: time through our client against bare requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

from palestra.errors import ContextOverflow
from palestra.policy.engines.sglang import SGLangEngine
from palestra.records import Generation, SamplingParams

PROMPT = "Write a Python function that returns the {} largest numbers of a list.\n"
MIS_LOW, MIS_HIGH = 0.5, 2.0


async def main() -> None:
    options = _options()
    tokenizer, model = _load(options.model, options.device)
    prompts = [tokenizer(PROMPT.format(n + 2)).input_ids for n in range(options.samples)]
    report: dict[str, Any] = {"samples": len(prompts), "max_new_tokens": options.tokens}
    async with SGLangEngine(options.engine, max_context=options.max_context) as engine:
        await engine.health()
        sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=options.tokens)
        answers = await asyncio.gather(*(engine.generate(p, sampling) for p in prompts))
        ours_s, bare_s = await _in_turns(engine, sampling, options, prompts)
        report["logprobs"] = _compare(model, prompts, answers)
        report["greedy ids equal to raw"] = await _greedy(engine, options, prompts[:16])
        report["aborted and went on"] = await _abort(engine, options, prompts[0])
        report["versions in one answer"] = await _publish(engine, options, prompts[0])
        report["too long"] = await _overflow(engine, options)
        report["running after a cancel"] = await _cancel(engine, options, prompts[0])
    print(json.dumps(report, indent=2))
    print(f"our client {ours_s:.2f} s, bare {bare_s:.2f} s, ratio {ours_s / bare_s:.3f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", required=True, help="http://HOST:PORT of an SGLang server")
    parser.add_argument("--model", type=Path, required=True, help="the folder that it serves")
    parser.add_argument("--device", default="cuda", help="of the model that compares")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--max-context", type=int, default=32768)
    return parser.parse_args()


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return AutoTokenizer.from_pretrained(folder), model.to(device).eval()


def _compare(model: Any, prompts: list[list[int]], answers: list[Generation]) -> dict[str, float]:
    import torch

    gaps: list[float] = []
    outside = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [i for segment in answer.segments for i in segment.ids]
        sampled = [p for segment in answer.segments for p in segment.logprobs]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids], device=model.device)).logits[0].float()
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        trained = logprobs.gather(1, torch.tensor(ids, device=model.device)[:, None])[:, 0].tolist()
        for ours, theirs in zip(trained, sampled, strict=True):
            gaps.append(abs(ours - theirs))
            outside += not MIS_LOW <= math.exp(ours - theirs) <= MIS_HIGH
    return {
        "tokens": len(gaps),
        "mean gap": statistics.fmean(gaps),
        "largest gap": max(gaps),
        "share outside MIS bounds": outside / len(gaps),
    }


async def _greedy(engine: SGLangEngine, options: Any, prompts: list[list[int]]) -> str:
    """One at a time, so that batches are the same on both sides."""
    equal = 0
    sampling = SamplingParams(temperature=0.0, top_p=1.0, max_new_tokens=32)
    async with httpx.AsyncClient(base_url=options.engine, timeout=600, trust_env=False) as raw:
        for prompt in prompts:
            answer = await engine.generate(prompt, sampling)
            params = {"temperature": 0.0, "max_new_tokens": 32}
            body = {"input_ids": prompt, "sampling_params": params}
            said = (await raw.post("/generate", json=body)).json()["output_ids"]
            equal += [i for s in answer.segments for i in s.ids] == said
    return f"{equal} of {len(prompts)}"


async def _in_turns(
    engine: SGLangEngine, sampling: SamplingParams, options: Any, prompts: list[list[int]]
) -> tuple[float, float]:
    """Seconds for all samples, through our client and bare: medians of five, in turns."""
    ours, bare = [], []
    for _ in range(5):
        began_s = time.monotonic()
        await asyncio.gather(*(engine.generate(p, sampling) for p in prompts))
        ours.append(time.monotonic() - began_s)
        bare.append(await _bare(options, prompts))
    return statistics.median(ours), statistics.median(bare)


async def _bare(options: Any, prompts: list[list[int]]) -> float:
    # All sample the same number of ids on neither side: what they draw decides.
    params = {"temperature": 1.0, "max_new_tokens": options.tokens}
    bodies = [{"input_ids": p, "sampling_params": params, "return_logprob": True} for p in prompts]
    began_s = time.monotonic()
    async with httpx.AsyncClient(
        base_url=options.engine, timeout=600, trust_env=False, limits=httpx.Limits()
    ) as raw:
        await asyncio.gather(*(raw.post("/generate", json=body) for body in bodies))
    return time.monotonic() - began_s


async def _abort(engine: SGLangEngine, options: Any, prompt: list[int]) -> str:
    """Abort everything in the middle: what was sampled stays, and sampling goes on."""
    running = _long(engine, prompt)
    await asyncio.sleep(0.2)
    await _post(options, "/abort_request", {"abort_all": True, "rid": ""})
    answer = await running
    lengths = [len(segment.ids) for segment in answer.segments]
    return f"{len(lengths)} segments, {sum(lengths)} ids"


async def _publish(engine: SGLangEngine, options: Any, prompt: list[int]) -> list[tuple[int, int]]:
    """Weights of a new version in the middle: (version, ids) of each segment."""
    running = _long(engine, prompt)
    await asyncio.sleep(0.5)
    body = {"model_path": str(options.model), "weight_version": "7", "abort_all_requests": True}
    began_s = time.monotonic()
    await _post(options, "/update_weights_from_disk", body)
    print(f"publishing took {time.monotonic() - began_s:.2f} s")
    answer = await running
    return [(segment.policy_version, len(segment.ids)) for segment in answer.segments]


async def _overflow(engine: SGLangEngine, options: Any) -> str:
    bold = SGLangEngine(options.engine, max_context=1 << 20)
    async with bold:
        try:
            await bold.generate([100] * (options.max_context + 8), SamplingParams(max_new_tokens=8))
        except ContextOverflow as error:
            return f"ContextOverflow: {error.message[:120]}"
    return "it answered"


async def _cancel(engine: SGLangEngine, options: Any, prompt: list[int]) -> str:
    running = _long(engine, prompt)
    await asyncio.sleep(0.2)
    before = await _load_of(options)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0.3)
    return f"{before} before, {await _load_of(options)} after"


async def _load_of(options: Any) -> str:
    async with httpx.AsyncClient(base_url=options.engine, timeout=60, trust_env=False) as raw:
        return (await raw.get("/get_load")).text


def _long(engine: SGLangEngine, prompt: list[int]) -> asyncio.Task[Generation]:
    # No end of its own: only the limit, an abort or a cancel ends it.
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=2000)
    return asyncio.create_task(engine.generate(prompt, sampling))


async def _post(options: Any, path: str, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=options.engine, timeout=600, trust_env=False) as raw:
        answer = await raw.post(path, json=body)
        answer.raise_for_status()


if __name__ == "__main__":
    asyncio.run(main())
