"""The forward pass of a Hugging Face causal model on a microbatch."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import DynamicCache

from palestra.learning.training.attention import Segments
from palestra.learning.training.batching import Microbatch
from palestra.learning.training.logprobs import TokenLogprobs, token_logprobs


def score(model: Any, batch: Microbatch, entropy_gradient: bool) -> TokenLogprobs:
    """Log-probabilities of a microbatch's trained ids, at the temperatures they were sampled at."""
    if batch.segments is None:
        hidden_SH = states(model, batch.prefix_P, batch.ids_BT)
    else:
        hidden_SH = stream_states(model, batch.ids_BT, batch.segments)
    head = model.get_output_embeddings()
    return token_logprobs(
        hidden_SH[batch.predictor_N],
        head,
        target_ids_N=batch.target_ids_N,
        temperatures_N=batch.temperatures_N,
        vocab_size=head.weight.shape[0],
        entropy_gradient=entropy_gradient,
    )


def states(model: Any, prefix_P: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
    """Last hidden states [P + B * T, H]: of the prefix, then of what each row adds to it.

    Gradients flow from every row through the prefix's keys and values.
    """
    num_shared, (num_rows, width) = len(prefix_P), ids_BT.shape
    positions_T = torch.arange(num_shared, num_shared + width, device=ids_BT.device)
    positions_BT = positions_T.expand(num_rows, width)
    if not num_shared:
        states_BTH = model.base_model(
            input_ids=ids_BT, position_ids=positions_BT, use_cache=False
        ).last_hidden_state
        return cast("torch.Tensor", states_BTH.flatten(0, 1))
    cache = DynamicCache(config=model.config)
    prefix_1PH = model.base_model(
        input_ids=prefix_P[None],
        position_ids=torch.arange(num_shared, device=ids_BT.device)[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    cache.batch_repeat_interleave(num_rows)
    states_BTH = model.base_model(
        input_ids=ids_BT, position_ids=positions_BT, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return torch.cat([prefix_1PH[0], states_BTH.flatten(0, 1)])


def stream_states(model: Any, ids_1S: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Last hidden states [S, H] of a packed stream."""
    states_1SH = model.base_model(
        input_ids=ids_1S,
        position_ids=segments.positions_S[None],
        segments=segments,
        use_cache=False,
    ).last_hidden_state
    return cast("torch.Tensor", states_1SH[0])
