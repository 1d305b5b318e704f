"""Supervised steps on demonstrations before RL: small models do not explore from nothing."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence

import torch

from palestra.config import WarmstartSection
from palestra.learning.training.batching import Microbatch, TrainingRow, microbatches
from palestra.learning.training.optimizer import PolicyOptimizer
from palestra.learning.training.schedule import lr_at
from palestra.learning.training.trainer import Trainer
from palestra.records import TokenPath

_WARMUP_SHARE = 10  # a tenth of the steps


def warm_start(
    trainer: Trainer, paths: Sequence[TokenPath], section: WarmstartSection, seed: int
) -> Iterator[dict[str, float]]:
    """Fit the trainer's policy to the trainable ids of demonstrations, one step per item.

    Cross-entropy, averaged over the ids of a step, under an optimizer of its own: AdamW
    without weight decay, linear warm-up over a tenth of the steps, then a cosine to 0.
    Every epoch visits the demonstrations in a new order. When the iterator ends (or is
    closed) RL starts from these weights: its moments are fresh, its reference is they,
    and its version is still 0.

    Yields:
        ``warmstart/loss`` (nats per id), ``warmstart/grad_norm``, ``warmstart/lr``,
        ``warmstart/num_tokens``.

    Raises:
        ValueError: RL has already begun, or no demonstration has a trainable id.
    """
    rows = [
        TrainingRow(rollout_id=f"demonstration-{number}", path=path, advantage=1.0)
        for number, path in enumerate(paths)
        if any(path.trainable)
    ]
    if not rows:
        raise ValueError(f"none of {len(paths)} demonstrations has an id to train on")
    if trainer.version:
        raise ValueError(f"RL has begun: {trainer.version} steps are done")
    return _steps(trainer, rows, section, seed)


def _steps(
    trainer: Trainer, rows: list[TrainingRow], section: WarmstartSection, seed: int
) -> Iterator[dict[str, float]]:
    optimizer = PolicyOptimizer(
        trainer.policy.model,
        betas=trainer.training.betas,
        weight_decay=0.0,
        offload=trainer.training.offload_optimizer,
    )
    batches = _epochs(rows, section.batch_size, random.Random(seed))
    try:
        for step in range(section.steps):
            lr = lr_at(
                step,
                peak_lr=section.lr,
                warmup_steps=section.steps // _WARMUP_SHARE,
                total_steps=section.steps,
                decay="cosine",
            )
            yield _step(trainer, optimizer, next(batches), lr)
    finally:
        optimizer.forget_gradients()
        trainer.start_from_here()


def _step(
    trainer: Trainer, optimizer: PolicyOptimizer, rows: list[TrainingRow], lr: float
) -> dict[str, float]:
    batches = microbatches(
        list(enumerate(rows)),
        max_tokens=trainer.training.microbatch_tokens,
        device=trainer.policy.device,
        layout=trainer.training.layout,
    )
    num_tokens = sum(batch.num_trainable for batch in batches)
    losses = []
    for batch in batches:
        loss = -trainer.policy.score(_at_temperature_1(batch)).logprobs_N.sum() / num_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.accumulate()
        losses.append(float(loss.detach()))
    norm = optimizer.step(lr=lr, max_grad_norm=trainer.training.max_grad_norm)
    return {
        "warmstart/loss": math.fsum(losses),
        "warmstart/grad_norm": norm,
        "warmstart/lr": lr,
        "warmstart/num_tokens": float(num_tokens),
    }


def _epochs(
    rows: list[TrainingRow], batch_size: int, rng: random.Random
) -> Iterator[list[TrainingRow]]:
    batch: list[TrainingRow] = []
    while True:
        for row in rng.sample(rows, len(rows)):
            batch.append(row)
            if len(batch) == batch_size:
                yield batch
                batch = []


def _at_temperature_1(batch: Microbatch) -> Microbatch:
    ones_N = torch.ones_like(batch.temperatures_N)
    return dataclasses.replace(batch, temperatures_N=ones_N)
