"""Small models, groups and sections for the tests of the training package."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from palestra.config import ModelSection, TrainingSection
from palestra.learning.training import Trainer
from palestra.learning.training.batching import Microbatch, TrainingRow, collate
from palestra.learning.training.model import Policy
from palestra.records import (
    EpisodeResult,
    FinishReason,
    Group,
    Outcome,
    Rollout,
    Segment,
    Timings,
    TokenPath,
    Trace,
    Turn,
)

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

VOCAB = 24
CPU = torch.device("cpu")
CPU_MODEL = ModelSection(device="cpu")


def tiny_model(folder: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Write a random two-layer model with a made-up tokenizer file."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        # Large enough that logits differ: a flat model would hide mistakes.
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"made": "up"}')
    return folder


def trainer_at(
    folder: Path, *, seed: int = 0, model: ModelSection = CPU_MODEL, **kw: Any
) -> Trainer:
    truncated = kw.pop("truncated", "keep")
    kw.setdefault("lr", 1e-2)
    return Trainer(
        folder, model=model, training=TrainingSection(**kw), truncated=truncated, seed=seed
    )


def path_of(
    parts: Sequence[tuple[bool, Sequence[int]]],
    *,
    logprob: float = -1.0,
    temperature: float = 1.0,
    version: int = 0,
) -> TokenPath:
    """A path from (sampled?, ids) parts with one logprob for every sampled id."""
    trainable = [sampled for sampled, ids in parts for _ in ids]
    return TokenPath(
        ids=tuple(i for _, ids in parts for i in ids),
        trainable=tuple(trainable),
        logprobs=tuple(logprob if s else 0.0 for s in trainable),
        versions=tuple(version if s else -1 for s in trainable),
        temperatures=tuple(temperature if s else 1.0 for s in trainable),
    )


def turn(
    index: int,
    context_ids: Sequence[int],
    ids: Sequence[int],
    logprobs: Sequence[float] | None = None,
    *,
    parent: int | None = None,
    version: int = 0,
    temperature: float = 1.0,
) -> Turn:
    chosen = tuple(logprobs) if logprobs is not None else (-2.0,) * len(ids)
    return Turn(
        index=index,
        parent=parent,
        context_ids=tuple(context_ids),
        segments=(Segment(ids=tuple(ids), logprobs=chosen, policy_version=version),),
        finish_reason=FinishReason.STOP,
        temperature=temperature,
        duration_s=0.0,
    )


def rollout(name: str, outcome: Outcome, turns: Sequence[Turn]) -> Rollout:
    episode = EpisodeResult(
        episode_id=name,
        instance_id="task",
        outcome=outcome,
        exit_status="Submitted",
        messages=(),
        patch=None,
        submission=None,
        verdict=None,
        error=None,
        num_turns=len(turns),
        num_tool_calls=0,
        timings=Timings(),
    )
    return Rollout(
        rollout_id=name, episode=episode, trace=Trace(session_id=name, turns=tuple(turns))
    )


def group(*rollouts: Rollout) -> Group:
    return Group(group_id="group", instance_id="task", task_index=0, rollouts=rollouts)


def random_groups(
    seed: int, *, num_groups: int = 2, size: int = 4, version: int = 0
) -> list[Group]:
    """Groups of two-turn rollouts of different lengths, each group with both rewards."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(rng.randint(low, high))]

    def one(name: str, index: int) -> Rollout:
        turns = []
        for number in range(2):
            sampled = ids(1, 9)
            logprobs = [-rng.uniform(2.5, 4.0) for _ in sampled]
            parent = number - 1 if number else None
            turns.append(turn(number, ids(1, 6), sampled, logprobs, parent=parent, version=version))
        return rollout(name, Outcome.SOLVED if index % 2 else Outcome.UNSOLVED, turns)

    return [
        dataclasses.replace(
            group(*(one(f"{seed}-{g}-{i}", i) for i in range(size))), group_id=f"group-{g}"
        )
        for g in range(num_groups)
    ]


def sibling_groups(
    seed: int, *, num_groups: int = 2, size: int = 4, num_common: int = 12
) -> list[Group]:
    """Groups whose rollouts begin alike: the prompt, the whole first turn, part of the second."""
    rng = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [rng.randrange(VOCAB) for _ in range(n)]

    def one(name: str, index: int, common: list[int]) -> Rollout:
        own = ids(rng.randint(1, 7))
        first = turn(0, common[:6], common[6:9], [-rng.uniform(2.5, 4.0) for _ in range(3)])
        sampled = [*common[10:], *own]
        logprobs = [-rng.uniform(2.5, 4.0) for _ in sampled]
        second = turn(1, common[9:10], sampled, logprobs, parent=0)
        outcome = Outcome.SOLVED if index % 3 else Outcome.UNSOLVED
        return rollout(name, outcome, [first, second])

    made = []
    for g in range(num_groups):
        common = ids(num_common)
        rollouts = tuple(one(f"{seed}-{g}-{i}", i, common) for i in range(size))
        made.append(dataclasses.replace(group(*rollouts), group_id=f"group-{g}"))
    return made


def batch_of(rows: Sequence[TrainingRow]) -> Microbatch:
    return collate(list(enumerate(rows)), device=CPU)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return {
        name: weight.grad.clone()
        for name, weight in policy.model.named_parameters()
        if weight.grad is not None
    }


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.policy.model.state_dict().items()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing, f"differing tensors: {differing}"
