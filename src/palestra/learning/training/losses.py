"""The policy's loss per trained id: ratio, clip, KL to a reference; and how ids become one loss.

Everything works on flat arrays of the N trained ids of a microbatch. What one id's loss counts
(:class:`LossScale`) is known before anything goes through the model, from all rows of the
optimizer step, so how a batch is cut into microbatches or dealt out to ranks does not change
the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from palestra.config_training import Aggregation, ClipRule, KlEstimator, Objective, RatioLevel

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
    row_N: torch.Tensor,
    objective: Objective,
) -> PolicyLoss:
    """The objective's loss of each id, weighted against engine mismatch.

    Args:
        logprobs_N: under the weights that are being trained; the gradient flows here.
        old_logprobs_N: under the weights before the step.
        advantages_N: of each id's rollout.
        weights_N: importance weights of :mod:`palestra.learning.training.correction`; an id of
            weight 0 takes no part, not in the ratio of its row either.
        row_N: the row of each id; whole rows must be present where ratios are of rows.
        objective: level of the ratio, and what holds it.
    """
    weights_N = weights_N.detach()
    log_ratio_N = logprobs_N - old_logprobs_N.detach()
    # Mask before exp(): inf * 0 is NaN in the forward pass and again in the backward one.
    log_ratio_N = torch.where(weights_N > 0, log_ratio_N, torch.zeros_like(log_ratio_N))
    log_ratio_N = _RATIOS[objective.ratio](log_ratio_N, weights_N > 0, row_N)
    ratio_N = log_ratio_N.clamp(max=_MAX_LOG_RATIO).exp()
    return _CLIPS[objective.clip](ratio_N, logprobs_N, advantages_N, weights_N, objective)


# --- ratios -------------------------------------------------------------------


def _token_ratio(
    log_ratio_N: torch.Tensor, kept_N: torch.Tensor, row_N: torch.Tensor
) -> torch.Tensor:
    return log_ratio_N


def _sequence_ratio(
    log_ratio_N: torch.Tensor, kept_N: torch.Tensor, row_N: torch.Tensor
) -> torch.Tensor:
    """The mean over the kept ids of the row, so its exponential is their geometric mean.

    Zheng et al. 2025, *Group Sequence Policy Optimization* (arXiv:2507.18071), equation 7.
    """
    rows_R, place_N = torch.unique(row_N, return_inverse=True)
    zeros_R = torch.zeros(len(rows_R), dtype=log_ratio_N.dtype, device=log_ratio_N.device)
    sums_R = zeros_R.index_add(0, place_N, log_ratio_N)
    counts_R = zeros_R.index_add(0, place_N, kept_N.to(log_ratio_N.dtype))
    return (sums_R / counts_R.clamp(min=1.0))[place_N]


_Ratio = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_RATIOS: Mapping[RatioLevel, _Ratio] = MappingProxyType(
    {"token": _token_ratio, "sequence": _sequence_ratio}
)


# --- clips --------------------------------------------------------------------


def _ppo(
    ratio_N: torch.Tensor,
    logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    weights_N: torch.Tensor,
    objective: Objective,
) -> PolicyLoss:
    """``-w * min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)``.

    Schulman et al. 2017 (arXiv:1707.06347), equation 7; separate bounds are the "clip-higher"
    of Yu et al. 2025, *DAPO* (arXiv:2503.14476), equation 10.
    """
    plain_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high) * advantages_N
    return PolicyLoss(
        loss_N=-weights_N * torch.minimum(plain_N, bounded_N),
        clipped_N=(bounded_N < plain_N).detach(),
    )


def _cispo(
    ratio_N: torch.Tensor,
    logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    weights_N: torch.Tensor,
    objective: Objective,
) -> PolicyLoss:
    """``-w * stop_gradient(clip(r, 1 - clip_low, 1 + clip_high)) * A * logprob``.

    A bounded id keeps its gradient: MiniMax 2025, *MiniMax-M1* (arXiv:2506.13585), equations
    4 and 5.
    """
    low, high = 1.0 - objective.clip_low, 1.0 + objective.clip_high
    ratio_N = ratio_N.detach()
    kept_logprobs_N = torch.where(weights_N > 0, logprobs_N, torch.zeros_like(logprobs_N))
    return PolicyLoss(
        loss_N=-weights_N * ratio_N.clamp(low, high) * advantages_N * kept_logprobs_N,
        clipped_N=(ratio_N < low) | (ratio_N > high),
    )


def _unclipped(
    ratio_N: torch.Tensor,
    logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    weights_N: torch.Tensor,
    objective: Objective,
) -> PolicyLoss:
    """``-w * r * A``: REINFORCE's gradient, importance-weighted from the second minibatch on.

    Williams 1992; Ahmadian et al. 2024, *Back to Basics* (arXiv:2402.14740), section 3.
    """
    return PolicyLoss(
        loss_N=-weights_N * ratio_N * advantages_N,
        clipped_N=torch.zeros_like(ratio_N, dtype=torch.bool),
    )


_Clip = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Objective], PolicyLoss]
_CLIPS: Mapping[ClipRule, _Clip] = MappingProxyType(
    {"ppo": _ppo, "cispo": _cispo, "none": _unclipped}
)


# --- KL -----------------------------------------------------------------------


def kl_to_reference(
    logprobs_N: torch.Tensor, reference_logprobs_N: torch.Tensor, estimator: KlEstimator
) -> torch.Tensor:
    """Per-id estimate of KL(policy || reference) for ids drawn from the policy.

    With ``d = logprob - reference``: Schulman 2020, *Approximating KL Divergence*.

    * ``k1``: ``d``. Unbiased, of high variance. As a loss its gradient is 0 in expectation
      (Tang and Munos 2025, arXiv:2506.09477), so it measures and does not hold.
    * ``k2``: ``d**2 / 2``. Biased, but its gradient is that of the KL.
    * ``k3``: ``exp(-d) + d - 1``. Unbiased and never negative; GRPO's equation 4.

    Differences beyond 20 nats are held there, where exp() would overflow.
    """
    difference_N = reference_logprobs_N.detach() - logprobs_N
    difference_N = difference_N.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if estimator == "k1":
        return -difference_N
    if estimator == "k2":
        return 0.5 * difference_N.square()
    return difference_N.exp() - difference_N - 1.0


# --- aggregation --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """What the loss of one id counts: ``share_R[its row] / denominator``.

    The loss of an optimizer step is the sum over all its ids, wherever they are computed; ranks
    that average gradients multiply theirs by the number of ranks.
    """

    share_R: tuple[float, ...]
    denominator: float


def loss_scale(
    rollout_R: Sequence[str],
    num_ids_R: Sequence[int],
    *,
    aggregation: Aggregation,
    fixed_length: int,
) -> LossScale:
    """Say what ids count, from all rows of an optimizer step (of all ranks).

    The rows of one rollout are one sequence here, so an agent that rewrote its history does not
    count twice.

    * ``token_mean``: each id the same (DAPO, arXiv:2503.14476, equation 12).
    * ``sequence_mean``: each sequence the same (GRPO, arXiv:2402.03300, equation 3).
    * ``fixed_length``: each id the same, over sequences times a constant (Dr. GRPO,
      arXiv:2503.20783): neither long nor short answers are favoured.

    Args:
        rollout_R: the rollout of each row.
        num_ids_R: trained ids of each row, at least one.
        aggregation: which of them.
        fixed_length: the constant of the last.
    """
    lengths: dict[str, int] = {}
    for rollout, num_ids in zip(rollout_R, num_ids_R, strict=True):
        lengths[rollout] = lengths.get(rollout, 0) + num_ids
    equal_R = (1.0,) * len(rollout_R)
    if aggregation == "token_mean":
        return LossScale(share_R=equal_R, denominator=float(sum(num_ids_R)))
    if aggregation == "fixed_length":
        return LossScale(share_R=equal_R, denominator=float(len(lengths) * fixed_length))
    return LossScale(
        share_R=tuple(1.0 / lengths[rollout] for rollout in rollout_R),
        denominator=float(len(lengths)),
    )
