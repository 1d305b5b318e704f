"""Fits a tiny model to practice conversations: answers, and with less weight all else."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from demo_policy.corpus import Corpus
from numpy.typing import NDArray
from torch.nn import functional

_POOL = 64  # batches that are cut from one pool, sorted by length
_IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast: AdamW, linear warm-up, cosine to a fiftieth."""

    steps: int
    batch_size: int  # conversations
    lr: float
    warmup_steps: int = 200
    context_weight: float = 0.2  # of an id that is no answer, against one that is
    weight_decay: float = 0.01

    def lr_at(self, step: int) -> float:
        """The learning rate of step ``step``, from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where the pretraining stands; losses in nats."""

    step: int
    seconds: float
    context_loss: float  # per id
    answer_loss: float  # per conversation
    excess: float  # answer loss above what the demonstrator's choices cost


def pretrain(
    model: Any, train: Corpus, check: Corpus, schedule: Schedule, *, seed: int
) -> Iterator[Report]:
    """Train ``model`` in place; yields a report now and then and one at the end.

    Args:
        model: a causal language model, on the device to train on.
        train: what it is fitted to.
        check: what the reports are measured on.
        schedule: how long.
        seed: of the order.
    """
    device = model.device
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=0.0,
        betas=(0.9, 0.98),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    batches = _batches(train, schedule.batch_size, np.random.default_rng(seed))
    started = time.monotonic()
    every = max(1, schedule.steps // 12)
    for step in range(schedule.steps):
        ids, is_answer = (tensor.to(device, non_blocking=True) for tensor in next(batches))
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        nll, real, answer = _nll(model, ids, is_answer)
        weights = torch.where(answer, 1.0, schedule.context_weight) * real
        ((nll * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            yield _check(model, check, step + 1, time.monotonic() - started)
    model.eval()


def _nll(
    model: Any, ids: torch.Tensor, is_answer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Padding stands to the right, where causality hides it; its id is 0.
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    targets, answer = ids[:, 1:], is_answer[:, 1:]
    nll = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return nll.view_as(targets), targets != 0, answer


@torch.no_grad()
def _check(model: Any, check: Corpus, step: int, seconds: float) -> Report:
    model.eval()
    context, num_context, answers, num = 0.0, 0, 0.0, len(check.lengths)
    for first in range(0, num, 64):
        ids, is_answer = _padded(check, np.arange(first, min(first + 64, num)))
        ids, is_answer = ids.to(model.device), is_answer.to(model.device)
        nll, real, answer = _nll(model, ids, is_answer)
        context += float(nll[real & ~answer].sum())
        num_context += int((real & ~answer).sum())
        answers += float(nll[answer].sum())
    model.train()
    return Report(
        step=step,
        seconds=seconds,
        context_loss=context / num_context,
        answer_loss=answers / num,
        excess=answers / num - float(check.costs.mean()),
    )


def _batches(
    corpus: Corpus, size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        order = rng.permutation(len(corpus.lengths))
        for first in range(0, len(order) - size + 1, size * _POOL):
            pool = order[first : first + size * _POOL]
            pool = pool[np.argsort(corpus.lengths[pool], kind="stable")]
            cuts = [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
            for number in rng.permutation(len(cuts)):
                yield _padded(corpus, cuts[number])


def _padded(corpus: Corpus, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = corpus.lengths[rows]
    ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    is_answer = np.zeros(ids.shape, dtype=np.bool_)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = corpus.starts[row]
        ids[place, :length] = corpus.ids[start : start + length]
        is_answer[place, :length] = corpus.is_answer[start : start + length]
    return torch.from_numpy(ids), torch.from_numpy(is_answer)
