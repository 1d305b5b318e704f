"""Importance sampling against the mismatch of engine and trainer.

The engine samples from numerics (and, off-policy, from weights) that are not quite the
trainer's. Each trained id is weighted with ``exp(logp_old_trainer - logp_rollout)``, of
itself or of its whole row (the product over the row, or their geometric mean):
Yao et al. 2025, *Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training* (truncation); Liu et al. 2025, *When Speed Kills Stability* (masking, rejection, veto);
Ling Team 2025, *Every Step Evolves* (arXiv:2510.18855: IcePop). Options and metrics mean what
they mean in Miles' ``mis.py``, but that weights outside the bounds of a mask are 0 (not only left
out of a count), bounds are never missing, and masked ids stay in the denominator of the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from palestra.config_training import CorrectionSection, MismatchLevel

_MAX_LOG_RATIO = 20.0  # exp() of more says nothing and may overflow
_MIN_MEAN_WEIGHT = 1e-8  # below, there is nothing to normalise


def importance_weights(
    *,
    train_logprobs_N: torch.Tensor,
    rollout_logprobs_N: torch.Tensor,
    row_N: torch.Tensor,
    section: CorrectionSection,
) -> torch.Tensor:
    """Return the detached weight of each trained id.

    Modes: ``off`` weighs everything 1; ``truncate`` caps at ``high``; ``clip`` holds the
    weight within [low, high]; ``mask`` and ``icepop`` make it 0 outside of them. In every mode
    but ``off``, weights are 0 where the ratio at the level ``reject`` is outside its bounds,
    and in the whole row of an id whose own ratio is below ``veto``. ``normalize`` then divides
    by the mean weight, of ids or (at the other levels) of rows.

    Args:
        train_logprobs_N: by the trainer under the weights before the step.
        rollout_logprobs_N: by the engine when the id was sampled.
        row_N: the row (sequence) of each id; whole rows must be present, and with ``normalize``
            all that is to have the mean 1.
        section: mode and bounds.
    """
    if section.mode == "off":
        return torch.ones_like(rollout_logprobs_N)
    rows = _Rows.of(row_N)
    log_ratio_N = _log_ratio(train_logprobs_N, rollout_logprobs_N)
    ratio_N = _ratio(rows.at_level(log_ratio_N, section.level))
    weights_N = _bounded(ratio_N, section)
    kept_N = ~rows.with_any(_catastrophic(log_ratio_N, section.veto))
    if section.reject != "off":
        low, high = section.reject_bounds
        rejected_N = _ratio(rows.at_level(log_ratio_N, section.reject))
        kept_N &= (rejected_N >= low) & (rejected_N <= high)
    weights_N = torch.where(kept_N, weights_N, torch.zeros_like(weights_N))
    if section.normalize:
        weights_N = weights_N / _normaliser(weights_N, rows, section.level)
    return weights_N


def _bounded(ratio_N: torch.Tensor, section: CorrectionSection) -> torch.Tensor:
    if section.mode == "truncate":
        return ratio_N.clamp(max=section.high)
    if section.mode == "clip":
        return ratio_N.clamp(section.low, section.high)
    inside_N = (ratio_N >= section.low) & (ratio_N <= section.high)
    return torch.where(inside_N, ratio_N, torch.zeros_like(ratio_N))


def _normaliser(weights_N: torch.Tensor, rows: _Rows, level: MismatchLevel) -> float:
    means = weights_N.double() if level == "token" else rows.means(weights_N)
    mean = float(means.mean()) if means.numel() else 0.0
    return mean if mean > _MIN_MEAN_WEIGHT else 1.0


# --- metrics ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchMetrics:
    """What is known of each trained id, and of each row, under Miles' names (``mis_*``)."""

    by_id: dict[str, torch.Tensor]
    by_row: dict[str, torch.Tensor]
    place_N: torch.Tensor
    """Where each id's row stands in ``by_row``."""


def correction_metrics(
    *,
    train_logprobs_N: torch.Tensor,
    rollout_logprobs_N: torch.Tensor,
    weights_N: torch.Tensor,
    row_N: torch.Tensor,
    section: CorrectionSection,
) -> dict[str, float]:
    """Say how far engine and trainer are apart and what the correction did about it.

    Means are over ids, those of perplexities and of vetoed sequences over rows; minima and
    maxima are of all ids. N must be the ids of a whole optimizer step, at least one.
    """
    found = mismatch_metrics(
        train_logprobs_N=train_logprobs_N,
        rollout_logprobs_N=rollout_logprobs_N,
        weights_N=weights_N,
        row_N=row_N,
        section=section,
    )
    values = found.by_id | found.by_row
    metrics = {name: float(values.double().mean()) for name, values in values.items()}
    ratio_N = found.by_id["mis_tis_weight_before_bound"]
    metrics["mis_tis_weight_before_bound_max"] = float(ratio_N.max())
    metrics["mis_tis_weight_before_bound_min"] = float(ratio_N.min())
    if section.mode != "off":
        metrics["mis_is_ratio_max_final"] = float(weights_N.max())
        metrics["mis_is_ratio_min_final"] = float(weights_N.min())
    return metrics


def mismatch_metrics(
    *,
    train_logprobs_N: torch.Tensor,
    rollout_logprobs_N: torch.Tensor,
    weights_N: torch.Tensor,
    row_N: torch.Tensor,
    section: CorrectionSection,
) -> MismatchMetrics:
    """What :func:`correction_metrics` averages, for each id and each row."""
    rows = _Rows.of(row_N)
    train_logprobs_N = train_logprobs_N.detach()
    log_ratio_N = _log_ratio(train_logprobs_N, rollout_logprobs_N)
    bounded_N = log_ratio_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    by_id = {
        "mis_tis_weight_before_bound": _ratio(rows.at_level(log_ratio_N, section.level)),
        "mis_kl": -log_ratio_N,
        "mis_k3_kl": bounded_N.exp() - bounded_N - 1.0,
        "mis_chi2_token": (2.0 * bounded_N).exp() - 1.0,
        "train_rollout_logprob_abs_diff": log_ratio_N.abs(),
    }
    by_row = _perplexities(train_logprobs_N, rollout_logprobs_N, rows)
    product_R = rows.sums(log_ratio_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    by_row["mis_chi2_seq"] = (2.0 * product_R).exp() - 1.0
    if section.mode != "off":
        by_id |= _bounds_hit(log_ratio_N, weights_N, rows, section)
        catastrophic_N = by_id["mis_rs_catastrophic_token_fraction"]
        by_row["mis_rs_catastrophic_seq_fraction"] = (rows.sums(catastrophic_N) > 0).float()
    return MismatchMetrics(by_id=by_id, by_row=by_row, place_N=rows.place_N)


def _bounds_hit(
    log_ratio_N: torch.Tensor, weights_N: torch.Tensor, rows: _Rows, section: CorrectionSection
) -> dict[str, torch.Tensor]:
    ratio_N = _ratio(rows.at_level(log_ratio_N, section.level))
    metrics_N = {
        "mis_tis_weight_after_bound": _bounded(ratio_N, section),
        "mis_is_ratio_mean_final": weights_N,
        "mis_rs_catastrophic_token_fraction": _catastrophic(log_ratio_N, section.veto).float(),
    }
    if section.mode == "truncate":
        metrics_N["mis_tis_truncate_fraction"] = (ratio_N > section.high).float()
    else:
        mode = "clip" if section.mode == "clip" else "mask"
        metrics_N[f"mis_tis_{mode}_fraction_low"] = (ratio_N < section.low).float()
        metrics_N[f"mis_tis_{mode}_fraction_high"] = (ratio_N > section.high).float()
    if section.reject != "off":
        low, high = section.reject_bounds
        rejected_N = _ratio(rows.at_level(log_ratio_N, section.reject))
        metrics_N["mis_rs_mask_fraction_low"] = (rejected_N < low).float()
        metrics_N["mis_rs_mask_fraction_high"] = (rejected_N > high).float()
    return metrics_N


def _perplexities(
    train_logprobs_N: torch.Tensor, rollout_logprobs_N: torch.Tensor, rows: _Rows
) -> dict[str, torch.Tensor]:
    train_log_ppl_R = -rows.means(train_logprobs_N)
    rollout_log_ppl_R = -rows.means(rollout_logprobs_N)
    difference_R = train_log_ppl_R - rollout_log_ppl_R
    return {
        "mis_training_log_ppl": train_log_ppl_R,
        "mis_training_ppl": train_log_ppl_R.exp(),
        "mis_rollout_log_ppl": rollout_log_ppl_R,
        "mis_rollout_ppl": rollout_log_ppl_R.exp(),
        "mis_log_ppl_diff": difference_R,
        "mis_log_ppl_abs_diff": difference_R.abs(),
        "mis_ppl_ratio": difference_R.exp(),
    }


# --- arithmetic ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Which of N ids stand in the same of R rows."""

    place_N: torch.Tensor
    counts_R: torch.Tensor

    @classmethod
    def of(cls, row_N: torch.Tensor) -> _Rows:
        _, place_N, counts_R = torch.unique(row_N, return_inverse=True, return_counts=True)
        return cls(place_N=place_N, counts_R=counts_R)

    def at_level(self, log_ratio_N: torch.Tensor, level: MismatchLevel) -> torch.Tensor:
        if level == "token":
            return log_ratio_N
        sums_R = self._sums(log_ratio_N)
        return (sums_R if level == "sequence" else sums_R / self.counts_R)[self.place_N]

    def sums(self, values_N: torch.Tensor) -> torch.Tensor:
        return self._sums(values_N.double())

    def means(self, values_N: torch.Tensor) -> torch.Tensor:
        return self.sums(values_N) / self.counts_R

    def with_any(self, flag_N: torch.Tensor) -> torch.Tensor:
        """Whether any id of each id's row has the flag."""
        return (self._sums(flag_N.float()) > 0)[self.place_N]

    def _sums(self, values_N: torch.Tensor) -> torch.Tensor:
        zeros_R = torch.zeros(len(self.counts_R), dtype=values_N.dtype, device=values_N.device)
        return zeros_R.index_add(0, self.place_N, values_N)


def _log_ratio(train_logprobs_N: torch.Tensor, rollout_logprobs_N: torch.Tensor) -> torch.Tensor:
    return train_logprobs_N.detach() - rollout_logprobs_N


def _ratio(log_ratio_N: torch.Tensor) -> torch.Tensor:
    return log_ratio_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def _catastrophic(log_ratio_N: torch.Tensor, veto: float) -> torch.Tensor:
    return log_ratio_N < (math.log(veto) if veto > 0 else -math.inf)
