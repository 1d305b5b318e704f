"""Log-probabilities of given ids without ever holding [tokens, vocabulary] as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_ELEMENTS = 1 << 25
"""Float32 logits that one chunk may hold on a CPU: 128 MiB."""

MAX_CHUNK_ELEMENTS_GPU = 1 << 28
"""The same on a GPU, which is idle with less: 1 GiB."""

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, H] → logits [n, V]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Of N ids: natural log-probability, and entropy (nats) of what each was drawn from."""

    logprobs_N: torch.Tensor
    entropy_N: torch.Tensor  # detached, unless its gradient was asked for


def token_logprobs(
    hidden_NH: torch.Tensor,
    head: Head,
    *,
    target_ids_N: torch.Tensor,
    temperatures_N: torch.Tensor,
    vocab_size: int,
    max_chunk_elements: int | None = None,
    entropy_gradient: bool = False,
) -> TokenLogprobs:
    """Score ``target_ids_N`` under softmax(head(hidden) / temperature), in float32.

    Logits live for one chunk at a time; where gradients flow through more than one
    chunk, the backward pass computes them anew instead of keeping them.

    Args:
        hidden_NH: the state that predicts each id.
        head: the output embedding, applied to a chunk of states. A plain linear layer has its
            gradient computed in closed form, with that of its weight summed in float32.
        target_ids_N: the ids to score.
        temperatures_N: what each id's logits are divided by, > 0.
        vocab_size: V, which sets how many ids one chunk has.
        max_chunk_elements: how many logits one chunk may hold; ``None``: as the device likes.
        entropy_gradient: whether gradients flow through the entropy too.
    """
    num_ids = int(target_ids_N.numel())
    if max_chunk_elements is None:
        max_chunk_elements = MAX_CHUNK_ELEMENTS_GPU if hidden_NH.is_cuda else MAX_CHUNK_ELEMENTS
    chunk_ids = max(1, max_chunk_elements // vocab_size)
    if num_ids > chunk_ids and torch.is_grad_enabled() and _is_plain_linear(head):
        logprobs_N, entropy_N = _LinearScores.apply(  # type: ignore[no-untyped-call]
            hidden_NH,
            head.weight,
            head.bias,
            target_ids_N,
            temperatures_N,
            chunk_ids,
            entropy_gradient,
        )
        return TokenLogprobs(logprobs_N=logprobs_N, entropy_N=entropy_N)
    recompute = num_ids > chunk_ids and torch.is_grad_enabled()
    logprobs, entropies = [], []
    for part in _parts(num_ids, chunk_ids):
        inputs = (hidden_NH[part], head, target_ids_N[part], temperatures_N[part], entropy_gradient)
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


def _parts(num_ids: int, chunk_ids: int) -> Iterator[slice]:
    return (slice(start, start + chunk_ids) for start in range(0, num_ids, chunk_ids))


def _score_chunk(
    hidden_nH: torch.Tensor,
    head: Head,
    target_ids_n: torch.Tensor,
    temperatures_n: torch.Tensor,
    entropy_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_nV = head(hidden_nH).float() / temperatures_n[:, None]
    log_normaliser_n = torch.logsumexp(logits_nV, dim=-1)
    target_n = logits_nV.gather(-1, target_ids_n[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probs_nV = torch.softmax(logits_nV, dim=-1)
        entropy_n = log_normaliser_n - (probs_nV * logits_nV).sum(dim=-1)
    return target_n - log_normaliser_n, entropy_n


def _is_plain_linear(head: Head) -> TypeGuard[torch.nn.Linear]:
    # Sharded, quantised and adapted layers are other classes: they must be called.
    return type(head) is torch.nn.Linear and type(head.weight.data) is torch.Tensor


class _LinearScores(torch.autograd.Function):
    """Scores under a linear head, chunk by chunk in both directions.

    With z = logits / T, p = softmax(z) and H its entropy, of the id t:
    ``d logprob / dz = onehot(t) - p`` and ``dH / dz = -p * (log p + H)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_ids_N: torch.Tensor,
        temperatures_N: torch.Tensor,
        chunk_ids: int,
        entropy_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs_N = torch.empty_like(temperatures_N, dtype=torch.float32)
        entropy_N, log_normaliser_N = torch.empty_like(logprobs_N), torch.empty_like(logprobs_N)
        for part in _parts(len(target_ids_N), chunk_ids):
            scaled_nV = _scaled(hidden_NH[part], weight_VH, bias_V, temperatures_N[part])
            log_normaliser_n = torch.logsumexp(scaled_nV, dim=-1)
            logprobs_nV = scaled_nV.sub_(log_normaliser_n[:, None])
            logprobs_N[part] = logprobs_nV.gather(-1, target_ids_N[part, None])[:, 0]
            probs_nV = logprobs_nV.exp_()
            entropy_N[part] = torch.special.entr(probs_nV, out=probs_nV).sum(dim=-1)
            log_normaliser_N[part] = log_normaliser_n
        ctx.save_for_backward(
            hidden_NH, weight_VH, bias_V, target_ids_N, temperatures_N, log_normaliser_N, entropy_N
        )
        ctx.chunk_ids = chunk_ids
        ctx.entropy_gradient = entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_ids_N, temperatures_N, log_normaliser_N, entropy_N = (
            ctx.saved_tensors
        )
        on_logprobs_N, on_entropy_N = gradients
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        # Summed over many chunks: in the weight's own precision, most of it would be lost.
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias else None
        for part in _parts(len(target_ids_N), ctx.chunk_ids):
            scaled_nV = _scaled(hidden_NH[part], weight_VH, bias_V, temperatures_N[part])
            logprobs_nV = scaled_nV.sub_(log_normaliser_N[part, None])
            factor_nV = -on_logprobs_N[part, None]
            if ctx.entropy_gradient:
                surprise_nV = logprobs_nV + entropy_N[part, None]
                factor_nV = factor_nV - on_entropy_N[part, None] * surprise_nV
            grad_nV = logprobs_nV.exp_().mul_(factor_nV)
            grad_nV.scatter_add_(-1, target_ids_N[part, None], on_logprobs_N[part, None])
            grad_nV = grad_nV.div_(temperatures_N[part, None]).to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH[part] = grad_nV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH += grad_nV.T @ hidden_NH[part]
            if grad_bias_V is not None:
                grad_bias_V += grad_nV.float().sum(dim=0)
        return (
            grad_hidden_NH,
            None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype),
            None if grad_bias_V is None else grad_bias_V.to(cast("torch.Tensor", bias_V).dtype),
            *(None,) * 4,
        )


def _scaled(
    hidden_nH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    temperatures_n: torch.Tensor,
) -> torch.Tensor:
    """Float32 logits over temperature, in memory of their own."""
    logits_nV = torch.nn.functional.linear(hidden_nH, weight_VH, bias_V).float()
    return logits_nV.div_(temperatures_n[:, None])
