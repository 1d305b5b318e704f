"""How far an optimizer step moved the weights, from a sample of them."""

from __future__ import annotations

from typing import Any

import torch

from palestra.learning.training.ranks import own_part

SAMPLED_PER_TENSOR = 4096


class WeightSample:
    """Evenly spaced values of every trained tensor, as they are served, at one moment.

    All of them would need a second copy of the model; some thousand of each tell whether
    anything moves.

    Args:
        model: whose parameters are trained.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._values_N = _sample(model)

    def relative_change(self) -> float:
        """Root mean square of the change since then, over that of the values then.

        Returns:
            0 exactly when no value of the sample changed.
        """
        change_N = _sample(self._model) - self._values_N
        size = float(self._values_N.square().mean().sqrt())
        return float(change_N.square().mean().sqrt()) / max(size, 1e-30)


def _sample(model: Any) -> torch.Tensor:
    with torch.no_grad():
        parts = [
            part.reshape(-1)[:: max(1, part.numel() // SAMPLED_PER_TENSOR)].float().cpu()
            for part in (own_part(w) for w in model.parameters() if w.requires_grad)
        ]
        return torch.cat(parts)
