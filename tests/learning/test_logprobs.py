from __future__ import annotations

import numpy as np
import pytest
import torch

from palestra.learning.training.logprobs import token_logprobs


def scored(chunk: int, *, grad: bool = True) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(37, 8, generator=generator, requires_grad=grad)
    head = torch.nn.Linear(8, 50, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(50, 8, generator=generator))
    out = token_logprobs(
        hidden,
        head,
        target_ids_N=torch.randint(0, 50, (37,), generator=generator),
        temperatures_N=torch.linspace(0.3, 1.7, 37),
        vocab_size=50,
        max_chunk_elements=chunk,
    )
    if grad:
        (out.logprobs_N * torch.linspace(-1, 1, 37)).sum().backward()
        assert hidden.grad is not None
        assert head.weight.grad is not None
        return out.logprobs_N.detach(), out.entropy_N, hidden.grad, head.weight.grad
    return out.logprobs_N, out.entropy_N


def test_logprobs_and_entropy_against_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(37, 8, generator=generator).double().numpy()
    weight = torch.randn(50, 8, generator=generator).double().numpy()
    targets = torch.randint(0, 50, (37,), generator=generator).numpy()
    logits = hidden @ weight.T / np.linspace(0.3, 1.7, 37)[:, None]
    logits -= logits.max(axis=1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    got, entropy = scored(10**6, grad=False)
    np.testing.assert_allclose(
        got.detach().numpy(), logp[np.arange(37), targets], rtol=2e-5, atol=2e-6
    )
    np.testing.assert_allclose(entropy.numpy(), -(np.exp(logp) * logp).sum(1), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 50, 333, 50 * 37])
def test_chunks_change_nothing(chunk: int) -> None:
    for got, whole in zip(scored(chunk), scored(10**6), strict=True):
        torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)


def test_logits_live_for_one_chunk_only() -> None:
    sizes = []

    def head(hidden_nH: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden_nH))
        return hidden_nH.repeat(1, 5)

    hidden = torch.randn(100, 10, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        out = token_logprobs(
            hidden,
            head,
            target_ids_N=torch.zeros(100, dtype=torch.int64),
            temperatures_N=torch.ones(100),
            vocab_size=50,
            max_chunk_elements=50 * 16,
        )
    assert max(sizes) == 16
    assert sum(saved) < 100 * 50, "the forward pass kept logits for the backward pass"
    out.logprobs_N.sum().backward()
    assert len(sizes) == 14, "each chunk is computed twice: forward and backward"


def test_low_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.linspace(-4, 4, 64).to(torch.bfloat16)[None]
    out = token_logprobs(
        logits,
        lambda hidden: hidden,
        target_ids_N=torch.tensor([63]),
        temperatures_N=torch.ones(1),
        vocab_size=64,
    )
    want = torch.log_softmax(logits.float(), -1)[0, 63]
    assert out.logprobs_N.dtype == torch.float32
    torch.testing.assert_close(out.logprobs_N[0], want)
