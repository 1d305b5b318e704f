"""Log-probabilities of given ids without ever holding [tokens, vocabulary] as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_ELEMENTS = 1 << 25
"""Float32 logits that one chunk may hold: 128 MiB."""

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, H] → logits [n, V]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Of N ids: natural log-probability, and entropy (nats) of what each was drawn from."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor  # detached


def token_logprobs(
    hidden_NH: torch.Tensor,
    head: Head,
    *,
    target_ids_N: torch.Tensor,
    temperatures_N: torch.Tensor,
    vocab_size: int,
    max_chunk_elements: int = MAX_CHUNK_ELEMENTS,
) -> TokenLogprobs:
    """Score ``target_ids_N`` under softmax(head(hidden) / temperature), in float32.

    Logits live for one chunk at a time; where gradients flow through more than one
    chunk, the backward pass computes them anew instead of keeping them.

    Args:
        hidden_NH: the state that predicts each id.
        head: the output embedding, applied to a chunk of states.
        target_ids_N: the ids to score.
        temperatures_N: what each id's logits are divided by, > 0.
        vocab_size: V, which sets how many ids one chunk has.
        max_chunk_elements: how many logits one chunk may hold.
    """
    num_ids = int(target_ids_N.numel())
    chunk_ids = max(1, max_chunk_elements // vocab_size)
    recompute = num_ids > chunk_ids and torch.is_grad_enabled()
    logprobs, entropies = [], []
    for start in range(0, num_ids, chunk_ids):
        part = slice(start, start + chunk_ids)
        inputs = (hidden_NH[part], head, target_ids_N[part], temperatures_N[part])
        if recompute:
            # The chunk draws no random numbers, so there is no RNG state to keep for it.
            logprobs_n, entropy_n = checkpoint(
                _score_chunk, *inputs, use_reentrant=False, preserve_rng_state=False
            )
        else:
            logprobs_n, entropy_n = _score_chunk(*inputs)
        logprobs.append(logprobs_n)
        entropies.append(entropy_n)
    if not logprobs:
        empty = temperatures_N.new_zeros(0)
        return TokenLogprobs(logprobs_N=empty, entropy_N=empty)
    return TokenLogprobs(logprobs_N=torch.cat(logprobs), entropy_N=torch.cat(entropies))


def _score_chunk(
    hidden_nH: torch.Tensor, head: Head, target_ids_n: torch.Tensor, temperatures_n: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_nV = head(hidden_nH).float() / temperatures_n[:, None]
    log_normaliser_n = torch.logsumexp(logits_nV, dim=-1)
    target_n = logits_nV.gather(-1, target_ids_n[:, None])[:, 0]
    with torch.no_grad():
        probs_nV = torch.softmax(logits_nV, dim=-1)
        entropy_n = log_normaliser_n - (probs_nV * logits_nV).sum(dim=-1)
    return target_n - log_normaliser_n, entropy_n
