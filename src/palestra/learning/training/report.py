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

    def on(self, device: torch.device) -> TokenReport:
        """The same on another device."""
        columns: dict[str, Any] = {}
        for field in fields(TokenReport):
            values_N = getattr(self, field.name)
            columns[field.name] = None if values_N is None else values_N.to(device)
        return TokenReport(**columns)


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


def ratios_by_rollout(
    tokens: TokenReport, rollout_ids: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """The importance ratio of each trained id, trainer's likelihood over the engine's.

    Args:
        tokens: of a whole step.
        rollout_ids: of the rows that ``row_N`` counts.

    Returns:
        By rollout, in the order of its paths and of the ids in them.
    """
    found: dict[str, list[float]] = {}
    order_N = torch.argsort(tokens.row_N, stable=True)
    ratio_N = (tokens.old_logprobs_N - tokens.rollout_logprobs_N).clamp(-20.0, 20.0).exp()
    rows = tokens.row_N[order_N].tolist()
    for row, ratio in zip(rows, ratio_N[order_N].tolist(), strict=True):
        found.setdefault(rollout_ids[row], []).append(ratio)
    return {rollout_id: tuple(ratios) for rollout_id, ratios in found.items()}
