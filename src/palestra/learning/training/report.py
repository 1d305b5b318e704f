"""What one optimizer step says about itself: per-id values in, named numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from palestra.config_training import CorrectionSection
from palestra.learning.training.correction import correction_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    """Detached values of N trained ids, as one microbatch left them."""

    row_N: torch.Tensor
    logprobs_N: torch.Tensor  # under the weights being trained
    old_logprobs_N: torch.Tensor  # under the weights before the step
    rollout_logprobs_N: torch.Tensor  # by the engine
    weights_N: torch.Tensor
    entropy_N: torch.Tensor
    policy_loss_N: torch.Tensor
    clipped_N: torch.Tensor
    staleness_N: torch.Tensor  # in versions
    kl_N: torch.Tensor | None  # None without a reference


def join(reports: Sequence[TokenReport]) -> TokenReport:
    """Concatenate the reports of a step, in their order."""
    columns: dict[str, Any] = {}
    for field in fields(TokenReport):
        parts = [getattr(report, field.name) for report in reports]
        columns[field.name] = None if parts[0] is None else torch.cat(parts)
    return TokenReport(**columns)


def token_metrics(tokens: TokenReport, section: CorrectionSection) -> dict[str, float]:
    """Means over the ids of a step, under the names that Miles logs where it has one."""
    means_N = {
        "pg_loss": tokens.policy_loss_N,
        "entropy": tokens.entropy_N,
        "pg_clipfrac": tokens.clipped_N,
        "ppo_kl": tokens.old_logprobs_N - tokens.logprobs_N,
        "staleness_mean": tokens.staleness_N,
    }
    if tokens.kl_N is not None:
        means_N["kl_loss"] = tokens.kl_N
    metrics = {name: float(values_N.double().mean()) for name, values_N in means_N.items()}
    metrics["staleness_max"] = float(tokens.staleness_N.max())
    metrics["num_tokens"] = float(tokens.row_N.numel())
    return metrics | correction_metrics(
        train_logprobs_N=tokens.old_logprobs_N,
        rollout_logprobs_N=tokens.rollout_logprobs_N,
        weights_N=tokens.weights_N,
        row_N=tokens.row_N,
        section=section,
    )
