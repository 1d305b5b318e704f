"""The policy's loss per trained id: clipped objective and KL to a reference.

Everything works on flat arrays of the N trained ids of a microbatch. Sums are divided
by one normaliser for the whole optimizer step (the trained ids of all its microbatches),
so how a batch is cut does not change the gradient: token-level aggregation of Yu et al.
2025, *DAPO* (arXiv:2503.14476), equation 12.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """The loss of each trained id, to be minimised, and where the clip held it."""

    loss_N: torch.Tensor
    clipped_N: torch.Tensor  # bool, detached


def policy_loss(
    *,
    logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    weights_N: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """PPO's clipped objective with separate bounds, weighted against engine mismatch.

    ``-w * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)`` with
    ``r = exp(logprobs - old_logprobs)``: Schulman et al. 2017 (arXiv:1707.06347),
    equation 7; the higher upper bound is DAPO's "clip-higher".

    Args:
        logprobs_N: under the weights that are being trained; the gradient flows here.
        old_logprobs_N: under the weights before the step.
        advantages_N: of each id's rollout.
        weights_N: importance weights of :mod:`palestra.learning.training.correction`.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
    """
    weights_N = weights_N.detach()
    log_ratio_N = logprobs_N - old_logprobs_N.detach()
    # Mask before exp(): inf * 0 is NaN in the forward pass and again in the backward one.
    log_ratio_N = torch.where(weights_N > 0, log_ratio_N, torch.zeros_like(log_ratio_N))
    ratio_N = log_ratio_N.clamp(max=_MAX_LOG_RATIO).exp()
    plain_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_N
    return PolicyLoss(
        loss_N=-weights_N * torch.minimum(plain_N, bounded_N),
        clipped_N=(bounded_N < plain_N).detach(),
    )


def k3_kl(logprobs_N: torch.Tensor, reference_logprobs_N: torch.Tensor) -> torch.Tensor:
    """Per-id estimate of KL(policy || reference): ``exp(d) - d - 1``, ``d = reference - policy``.

    Never negative, unbiased for ids drawn from the policy: Schulman 2020, *Approximating
    KL Divergence* (estimator k3), as in GRPO's equation 4. Differences beyond 20 nats are
    held there, where exp() would overflow.
    """
    difference_N = reference_logprobs_N.detach() - logprobs_N
    difference_N = difference_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return difference_N.exp() - difference_N - 1.0
