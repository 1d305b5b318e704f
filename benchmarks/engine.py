"""Tokens per second of the local engine against transformers' own ``generate``.

Both decode the same prompts with the same tiny model in the same process, one after
the other. ``generate`` gets each batch at once and left-padded, which is the best it
can do; the engine gets the same prompts as requests that arrive one by one.

    python benchmarks/engine.py [--model FOLDER] [--new-tokens 128] [--threads 1]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from palestra.config import EngineSection
from palestra.policy.engines import LocalEngine
from palestra.policy.tiny import make_tiny_model
from palestra.records import Generation, SamplingParams

CONCURRENCIES = (1, 8, 32)
MAX_CONTEXT = 1024
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="Hugging Face folder; default: a tiny one.")
    parser.add_argument("--new-tokens", type=int, default=128, help="Ids sampled per prompt.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or make_tiny_model(Path(scratch), texts=[Path(__file__).read_text()])
        asyncio.run(compare(folder, options.new_tokens, options.threads, options.device))


async def compare(folder: Path, num_new: int, num_threads: int, device: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    # Without the prefix cache: each repeat must do the whole work.
    engine = LocalEngine(
        folder,
        section=EngineSection(max_batch=max(CONCURRENCIES), num_threads=num_threads),
        max_context=MAX_CONTEXT,
        device=device,
        prefix_cache_ids=0,
    )
    async with engine:
        for concurrency in CONCURRENCIES:
            prompts = draw_prompts(concurrency, model.config.vocab_size)
            ours, theirs = [], []
            for _ in range(REPEATS):  # in turns, so that both see the same machine
                ours.append(await engine_rate(engine, prompts, num_new))
                theirs.append(transformers_rate(model, prompts, num_new))
            report(concurrency, statistics.median(ours), statistics.median(theirs))
        prompts = draw_prompts(max(CONCURRENCIES), model.config.vocab_size)
        answers = await answer_all(engine, prompts, num_new)
    worst = max(logprob_error(model, p, a) for p, a in zip(prompts, answers, strict=True))
    print(f"max |logprob(engine) - logprob(plain forward pass)|: {worst:.2e}")


def draw_prompts(num: int, vocab_size: int) -> list[list[int]]:
    draw = random.Random(num)
    return [
        [draw.randrange(3, vocab_size) for _ in range(draw.randrange(100, 400))] for _ in range(num)
    ]


def answer_all(
    engine: LocalEngine, prompts: Sequence[Sequence[int]], num_new: int
) -> asyncio.Future[list[Generation]]:
    return asyncio.gather(
        *(
            engine.generate(prompt, SamplingParams(max_new_tokens=num_new, seed=i))
            for i, prompt in enumerate(prompts)
        )
    )


async def engine_rate(engine: LocalEngine, prompts: Sequence[Sequence[int]], num_new: int) -> float:
    start = time.perf_counter()
    answers = await answer_all(engine, prompts, num_new)
    return sum(len(answer.ids) for answer in answers) / (time.perf_counter() - start)


def transformers_rate(model: Any, prompts: Sequence[Sequence[int]], num_new: int) -> float:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    start = time.perf_counter()
    # With logprobs, as the engine answers them.
    output = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        top_k=0,
        min_new_tokens=num_new,
        max_new_tokens=num_new,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
    return len(prompts) * num_new / (time.perf_counter() - start)


def logprob_error(model: Any, prompt: Sequence[int], answer: Generation) -> float:
    ids = torch.tensor([[*prompt, *answer.ids]], device=model.device)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0].float(), dim=-1)
    plain = logprobs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).squeeze(1)
    return float((plain.cpu() - torch.tensor(answer.logprobs)).abs().max())


def report(concurrency: int, ours: float, theirs: float) -> None:
    print(
        f"concurrency {concurrency}: engine {ours:.0f} tokens/s, "
        f"transformers {theirs:.0f} tokens/s, ratio {ours / theirs:.2f}"
    )


if __name__ == "__main__":
    main()
