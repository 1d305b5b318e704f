"""The whole loss of each id of a microbatch: policy, KL and entropy, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from palestra.config_training import TrainingSection
from palestra.learning.training.batching import Microbatch
from palestra.learning.training.correction import importance_weights
from palestra.learning.training.logprobs import TokenLogprobs
from palestra.learning.training.losses import LossScale, kl_to_reference, policy_loss
from palestra.learning.training.report import TokenReport


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeStep:
    """What is known of a microbatch's ids before the step; ``None`` where nobody computed it."""

    logprobs_N: torch.Tensor | None = None
    """Under the weights before the step; ``None``: those are the weights being trained."""
    weights_N: torch.Tensor | None = None
    """Importance weights; ``None``: those of the microbatch by itself."""
    reference_logprobs_N: torch.Tensor | None = None
    """Under the starting policy; ``None``: there is no KL."""


def token_loss(
    batch: Microbatch,
    scored: TokenLogprobs,
    *,
    before: BeforeStep,
    section: TrainingSection,
    version: int,
) -> tuple[torch.Tensor, TokenReport]:
    """Return the loss of each id, through which gradients flow, and a report without any.

    ``policy loss + kl_coef * KL - entropy_coef * entropy``.

    Args:
        batch: the ids, with the engine's logprobs.
        scored: the ids under the weights that are being trained.
        before: the same ids under other weights.
        section: the objective and the weights of its parts.
        version: of the weights before the step.
    """
    current_N = scored.logprobs_N.detach()
    old_N = current_N if before.logprobs_N is None else before.logprobs_N
    weights_N = before.weights_N
    if weights_N is None:
        weights_N = importance_weights(
            train_logprobs_N=old_N,
            rollout_logprobs_N=batch.rollout_logprobs_N,
            row_N=batch.row_N,
            section=section.correction,
        )
    clipped = policy_loss(
        logprobs_N=scored.logprobs_N,
        old_logprobs_N=old_N,
        advantages_N=batch.advantages_N,
        weights_N=weights_N,
        row_N=batch.row_N,
        objective=section.objective,
    )
    loss_N, kl_N = clipped.loss_N, None
    if before.reference_logprobs_N is not None:
        kl_N = kl_to_reference(scored.logprobs_N, before.reference_logprobs_N, section.kl)
        loss_N = loss_N + section.kl_coef * kl_N
    if section.entropy_coef > 0:
        loss_N = loss_N - section.entropy_coef * scored.entropy_N
    return loss_N, TokenReport(
        row_N=batch.row_N,
        logprobs_N=current_N,
        old_logprobs_N=old_N,
        rollout_logprobs_N=batch.rollout_logprobs_N,
        weights_N=weights_N,
        entropy_N=scored.entropy_N.detach(),
        policy_loss_N=clipped.loss_N.detach(),
        clipped_N=clipped.clipped_N,
        staleness_N=version - batch.version_N,
        kl_N=None if kl_N is None else kl_N.detach(),
    )


def scaled_sum(
    loss_N: torch.Tensor, row_N: torch.Tensor, *, rows: tuple[int, ...], scale: LossScale
) -> torch.Tensor:
    """What a microbatch adds to the loss of its optimizer step.

    Args:
        loss_N: of each id.
        row_N: the number of each id's row.
        rows: the numbers that the shares of ``scale`` belong to.
        scale: of the whole optimizer step.
    """
    if len(set(scale.share_R)) > 1:
        numbers_R = torch.tensor(rows, device=loss_N.device)
        shares_R = torch.tensor(scale.share_R, dtype=loss_N.dtype, device=loss_N.device)
        order_R = torch.argsort(numbers_R)
        place_N = torch.searchsorted(numbers_R[order_R], row_N)
        loss_N = loss_N * shares_R[order_R][place_N]
    elif scale.share_R[0] != 1.0:
        loss_N = loss_N * scale.share_R[0]
    return loss_N.sum() / scale.denominator
