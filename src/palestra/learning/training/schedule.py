"""The learning rate of each step."""

from __future__ import annotations

import math
from typing import Literal


def lr_at(
    step: int,
    *,
    peak_lr: float,
    warmup_steps: int,
    total_steps: int,
    decay: Literal["constant", "linear", "cosine"],
) -> float:
    """Return the learning rate of step number ``step``, counted from 0.

    It rises linearly to ``peak_lr``, which the last of ``warmup_steps`` reaches, and then
    stays or falls towards 0, which the step after the last one would have (cosine:
    Loshchilov and Hutter 2017, arXiv:1608.03983). Steps beyond ``total_steps`` have 0
    under a decay.
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if decay == "constant":
        return peak_lr
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if decay == "linear":
        return peak_lr * (1.0 - progress)
    return peak_lr * 0.5 * (1.0 + math.cos(math.pi * progress))
