"""Toy models for engine tests, and what a plain forward pass says about a generation."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from palestra.config import EngineSection
from palestra.policy.engines.local import LocalEngine
from palestra.records import Generation, SamplingParams, Segment

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

VOCAB = 64
CONTEXT = 512


def toy_model(folder: Path, *, seed: int = 0, tied: bool = True, shard: str = "1GB") -> Path:
    """Write a random two-layer model whose next-token distributions are far from flat."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        # A flat model would hide mistakes in attention and positions.
        initializer_range=0.25,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def engine_on(folder: Path, *, max_batch: int = 8, **options: Any) -> LocalEngine:
    options.setdefault("max_context", CONTEXT)
    section = EngineSection(max_batch=max_batch, num_threads=1)
    return LocalEngine(folder, section=section, device="cpu", **options)


async def started(
    engine: LocalEngine, *jobs: tuple[list[int], SamplingParams]
) -> list[asyncio.Task[Generation]]:
    """Tasks that have handed their requests to the engine, in this order."""
    tasks = [asyncio.create_task(engine.generate(prompt, s)) for prompt, s in jobs]
    await asyncio.sleep(0)  # a task runs up to its first wait
    return tasks


def prompt_of(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(f"{seed}/{length}")
    return [draw.randrange(VOCAB) for _ in range(length)]


@cache
def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_logprobs(folder: Path, ids: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probabilities of ids[1:], each given all before it, by one pass without a cache."""
    with torch.no_grad():
        logits = plain_model(folder)(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    logprobs = torch.log_softmax(logits[0, :-1].float() / (temperature or 1.0), dim=-1)
    return logprobs.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)


def worst_error(
    folder: Path, prompt: Sequence[int], generation: Generation, sampling: SamplingParams
) -> float:
    """The largest difference between the engine's and the plain log-probabilities."""
    return segment_error(
        folder,
        list(prompt),
        Segment(ids=generation.ids, logprobs=generation.logprobs, policy_version=0),
        sampling,
    )


def segment_error(
    folder: Path, before: list[int], segment: Segment, sampling: SamplingParams
) -> float:
    """The same for one segment, given all ids before it."""
    plain = plain_logprobs(folder, [*before, *segment.ids], sampling.temperature)
    ours = torch.tensor(segment.logprobs)
    return float((plain[len(before) - 1 :] - ours).abs().max())
