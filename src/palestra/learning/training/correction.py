"""Importance sampling against the mismatch of engine and trainer.

The engine samples from numerics (and, off-policy, from weights) that are not quite the
trainer's. Each trained id is weighted with ``exp(logp_old_trainer - logp_rollout)``, of
itself or of its whole row (the product over the row, or their geometric mean):
Yao et al. 2025, *Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training* (truncation); Liu et al. 2025, *When Speed Kills Stability* (masking, veto).
Metrics have the names of Miles' ``mis_*``.
"""

from __future__ import annotations

import math

import torch

from palestra.config import CorrectionSection

_MAX_LOG_RATIO = 20.0  # exp() of more says nothing and may overflow


def importance_weights(
    *,
    train_logprobs_N: torch.Tensor,
    rollout_logprobs_N: torch.Tensor,
    row_N: torch.Tensor,
    section: CorrectionSection,
) -> torch.Tensor:
    """Return the detached weight of each trained id.

    Modes: ``off`` weighs everything 1; ``truncate`` caps at ``high``; ``clip`` holds the
    weight within [low, high]; ``mask`` makes it 0 outside of them. In every mode but
    ``off`` an id whose own ratio is below ``veto`` makes all weights of its row 0.

    Args:
        train_logprobs_N: by the trainer under the weights before the step.
        rollout_logprobs_N: by the engine when the id was sampled.
        row_N: the row (sequence) of each id; whole rows must be present.
        section: mode and bounds.
    """
    if section.mode == "off":
        return torch.ones_like(rollout_logprobs_N)
    log_ratio_N = _log_ratio(train_logprobs_N, rollout_logprobs_N)
    ratio_N = _ratio(_at_level(log_ratio_N, row_N, section.level))
    if section.mode == "truncate":
        weights_N = ratio_N.clamp(max=section.high)
    elif section.mode == "clip":
        weights_N = ratio_N.clamp(section.low, section.high)
    else:
        inside_N = (ratio_N >= section.low) & (ratio_N <= section.high)
        weights_N = torch.where(inside_N, ratio_N, torch.zeros_like(ratio_N))
    vetoed_N = _rows_with(_catastrophic(log_ratio_N, section.veto), row_N)
    return torch.where(vetoed_N, torch.zeros_like(weights_N), weights_N)


def correction_metrics(
    *,
    train_logprobs_N: torch.Tensor,
    rollout_logprobs_N: torch.Tensor,
    weights_N: torch.Tensor,
    row_N: torch.Tensor,
    section: CorrectionSection,
) -> dict[str, float]:
    """Say how far engine and trainer are apart and what the correction did about it.

    Means are over ids, those of perplexities and of vetoed sequences over rows. N must
    be the ids of a whole optimizer step, at least one.
    """
    metrics_N = correction_metrics_by_id(
        train_logprobs_N=train_logprobs_N,
        rollout_logprobs_N=rollout_logprobs_N,
        weights_N=weights_N,
        row_N=row_N,
        section=section,
    )
    metrics = {name: float(values_N.double().mean()) for name, values_N in metrics_N.items()}
    ratio_N = metrics_N["mis_tis_weight_before_bound"]
    metrics["mis_tis_weight_before_bound_max"] = float(ratio_N.max())
    metrics["mis_tis_weight_before_bound_min"] = float(ratio_N.min())
    if section.mode != "off":
        catastrophic_N = metrics_N["mis_rs_catastrophic_token_fraction"]
        vetoed_R = _row_means(catastrophic_N, row_N) > 0
        metrics["mis_rs_catastrophic_seq_fraction"] = float(vetoed_R.double().mean())
    return metrics | _perplexities(train_logprobs_N, rollout_logprobs_N, row_N)


def correction_metrics_by_id(
    *,
    train_logprobs_N: torch.Tensor,
    rollout_logprobs_N: torch.Tensor,
    weights_N: torch.Tensor,
    row_N: torch.Tensor,
    section: CorrectionSection,
) -> dict[str, torch.Tensor]:
    """What :func:`correction_metrics` averages over ids, for each id."""
    log_ratio_N = _log_ratio(train_logprobs_N, rollout_logprobs_N)
    ratio_N = _ratio(_at_level(log_ratio_N, row_N, section.level))
    bounded_N = log_ratio_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    metrics_N = {
        "mis_tis_weight_before_bound": ratio_N,
        "mis_kl": -log_ratio_N,
        "mis_k3_kl": bounded_N.exp() - bounded_N - 1.0,
        "train_rollout_logprob_abs_diff": log_ratio_N.abs(),
    }
    if section.mode != "off":
        catastrophic_N = _catastrophic(log_ratio_N, section.veto)
        metrics_N |= {
            "mis_is_ratio_mean_final": weights_N,
            "mis_rs_catastrophic_token_fraction": catastrophic_N.float(),
        }
    if section.mode == "truncate":
        metrics_N["mis_tis_truncate_fraction"] = (ratio_N > section.high).float()
    elif section.mode in ("mask", "clip"):
        metrics_N[f"mis_tis_{section.mode}_fraction_low"] = (ratio_N < section.low).float()
        metrics_N[f"mis_tis_{section.mode}_fraction_high"] = (ratio_N > section.high).float()
    return metrics_N


def _perplexities(
    train_logprobs_N: torch.Tensor, rollout_logprobs_N: torch.Tensor, row_N: torch.Tensor
) -> dict[str, float]:
    train_log_ppl_R = -_row_means(train_logprobs_N.detach(), row_N)
    rollout_log_ppl_R = -_row_means(rollout_logprobs_N, row_N)
    difference_R = train_log_ppl_R - rollout_log_ppl_R
    metrics_R = {
        "mis_training_log_ppl": train_log_ppl_R,
        "mis_training_ppl": train_log_ppl_R.exp(),
        "mis_rollout_log_ppl": rollout_log_ppl_R,
        "mis_rollout_ppl": rollout_log_ppl_R.exp(),
        "mis_log_ppl_diff": difference_R,
        "mis_log_ppl_abs_diff": difference_R.abs(),
        "mis_ppl_ratio": difference_R.exp(),
    }
    return {name: float(values_R.mean()) for name, values_R in metrics_R.items()}


def _log_ratio(train_logprobs_N: torch.Tensor, rollout_logprobs_N: torch.Tensor) -> torch.Tensor:
    return train_logprobs_N.detach() - rollout_logprobs_N


def _at_level(log_ratio_N: torch.Tensor, row_N: torch.Tensor, level: str) -> torch.Tensor:
    if level == "token":
        return log_ratio_N
    rows_R, place_N, counts_R = torch.unique(row_N, return_inverse=True, return_counts=True)
    sums_R = torch.zeros(len(rows_R), dtype=log_ratio_N.dtype, device=log_ratio_N.device)
    sums_R = sums_R.index_add(0, place_N, log_ratio_N)
    return (sums_R if level == "sequence" else sums_R / counts_R)[place_N]


def _ratio(log_ratio_N: torch.Tensor) -> torch.Tensor:
    return log_ratio_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def _catastrophic(log_ratio_N: torch.Tensor, veto: float) -> torch.Tensor:
    return log_ratio_N < (math.log(veto) if veto > 0 else -math.inf)


def _rows_with(flag_N: torch.Tensor, row_N: torch.Tensor) -> torch.Tensor:
    return torch.isin(row_N, row_N[flag_N])


def _row_means(values_N: torch.Tensor, row_N: torch.Tensor) -> torch.Tensor:
    _, place_N, counts_R = torch.unique(row_N, return_inverse=True, return_counts=True)
    sums_R = torch.zeros(len(counts_R), dtype=torch.float64, device=values_N.device)
    means_R: torch.Tensor = sums_R.index_add(0, place_N, values_N.double()) / counts_R
    return means_R
