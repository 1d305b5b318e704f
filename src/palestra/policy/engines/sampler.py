"""Drawing one id for every row of a batch, and its log-probability."""
# ruff: noqa: N803, N806, N815  # shapes stand in names

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palestra.records import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """The sampling parameters of a batch as tensors; ``None`` where no row needs them."""

    temperatures_R1: Tensor  # 1 where greedy
    top_ps_R1: Tensor | None  # infinity where the nucleus is everything
    greedy_R: Tensor | None
    all_greedy: bool

    @classmethod
    def of(cls, rows: Sequence[SamplingParams], device: torch.device) -> RowSettings:
        """Collect the parameters of ``rows``, in their order."""
        greedy = [row.temperature == 0 for row in rows]
        temperatures = [row.temperature or 1.0 for row in rows]
        top_ps = [row.top_p if row.top_p < 1 else float("inf") for row in rows]
        return cls(
            temperatures_R1=torch.tensor(temperatures, device=device).unsqueeze(1),
            top_ps_R1=(
                torch.tensor(top_ps, device=device).unsqueeze(1)
                if any(row.top_p < 1 for row in rows)
                else None
            ),
            greedy_R=torch.tensor(greedy, device=device) if any(greedy) else None,
            all_greedy=all(greedy),
        )


def sample(
    logits_RV: Tensor,
    settings: RowSettings,
    uniforms: Sequence[float],
) -> tuple[list[int], list[float]]:
    """Draw one id per row.

    Inverse transform sampling: an id's interval of the cumulative distribution
    holds the row's uniform number. A row depends on no other row. The
    log-probability is that of the full softmax at the row's temperature, whatever
    the nucleus (Holtzman et al. 2020, arXiv:1904.09751) left out.

    Args:
        logits_RV: the model's logits, of any float type.
        settings: of the same rows.
        uniforms: one number in [0, 1) per row.

    Returns:
        Ids and natural log-probabilities, one per row.
    """
    logits = logits_RV.float()
    logprobs = torch.log_softmax(logits / settings.temperatures_R1, dim=-1)
    if settings.all_greedy:
        ids = logits.argmax(dim=-1)
    else:
        ids = _draw(logprobs.exp(), settings.top_ps_R1, uniforms)
        if settings.greedy_R is not None:
            ids = torch.where(settings.greedy_R, logits.argmax(dim=-1), ids)
    chosen = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
    return ids.tolist(), chosen.tolist()


def _draw(probs: Tensor, top_ps_R1: Tensor | None, uniforms: Sequence[float]) -> Tensor:
    if top_ps_R1 is not None:
        probs = _nucleus(probs, top_ps_R1)
    # In float32 the sum over a large vocabulary would lose the rarest ids.
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    uniforms_R1 = torch.tensor(uniforms, dtype=torch.float64, device=probs.device).unsqueeze(1)
    # The right side skips ids of probability 0, even for a uniform number of 0.
    ids = torch.searchsorted(cumulative, uniforms_R1 * cumulative[:, -1:], right=True)
    return ids.squeeze(1).clamp_(max=probs.shape[1] - 1)


def _nucleus(probs: Tensor, top_ps_R1: Tensor) -> Tensor:
    ordered, places = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    # `before` of the first id is 0, so at least one id is kept.
    return torch.zeros_like(probs).scatter_(
        1, places, ordered.masked_fill(before >= top_ps_R1, 0.0)
    )
