"""A policy whose weights several processes hold parts of, by FSDP2.

Zhao et al. 2023, *PyTorch FSDP*, arXiv:2304.11277; here ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from palestra.config_training import TrainingSection
from palestra.errors import ConfigError
from palestra.learning.training.batching import Microbatch
from palestra.learning.training.logprobs import TokenLogprobs
from palestra.learning.training.ranks import Ranks

Score = Callable[[Any, Microbatch, bool], TokenLogprobs]


class ShardedScorer(torch.nn.Module):
    """Scores ids with a model whose layers are put together one by one as they are needed.

    The output embedding is applied outside of the model's own forward pass, so the module that
    is sharded as a whole is this one: inside of its forward pass that weight is whole, and its
    gradient takes the same way as all others.

    Gradients are summed over the processes in float32 and divided by their number, as FSDP
    does: whoever wants the sum multiplies the loss by :attr:`num_ranks`.

    Args:
        model: a Hugging Face causal language model; its layers become sharded in place.
        score: what a forward pass is.
        ranks: who holds the parts.

    Raises:
        ConfigError: the model has no layers of the kind that Transformers marks.
    """

    def __init__(self, model: Any, score: Score, ranks: Ranks) -> None:
        super().__init__()
        self.model = model
        self.num_ranks = ranks.size
        self._score = score
        layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
        if not layers:
            raise ConfigError(f"{type(model).__name__} has no layers to share out")
        precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for layer in layers:
            fully_shard(layer, mesh=ranks.mesh, mp_policy=precision)
        fully_shard(self, mesh=ranks.mesh, mp_policy=precision)

    def forward(
        self, batch: Microbatch, entropy_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies; plain tensors, in which FSDP finds its way back."""
        scored = self._score(self.model, batch, entropy_gradient)
        return scored.logprobs_N, scored.entropy_N

    def take_apart(self) -> None:
        """Give up what a forward pass without a backward pass has left whole."""
        # FSDP2 changes the class of what it shares out.
        cast("FSDPModule", self).reshard()


def require_shareable(training: TrainingSection) -> None:
    """Say no to what several processes cannot do together.

    Raises:
        ConfigError: something of that is asked for.
    """
    asked = {
        "training.lora": training.lora is not None,
        "training.offload_optimizer": training.offload_optimizer,
        "training.compile": training.compile,
        "training.kl_coef": training.kl_coef > 0,
    }
    if wrong := [name for name, is_asked in asked.items() if is_asked]:
        raise ConfigError(f"several training processes cannot do this yet: {', '.join(wrong)}")
