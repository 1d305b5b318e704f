from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from palestra.learning.training.logprobs import token_logprobs


class CalledHead(torch.nn.Linear):
    """A head that is no plain linear layer, so that its gradient comes from autograd."""


HEADS = pytest.mark.parametrize("head_type", [torch.nn.Linear, CalledHead])
TEMPERATURES = torch.linspace(0.3, 1.7, 37)


def scored(
    chunk: int,
    *,
    head_type: type[torch.nn.Linear] = torch.nn.Linear,
    grad: bool = True,
    entropy_gradient: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, ...]:
    """Logprobs, entropies and the gradients of a sum over both, where they flow."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(37, 8, generator=generator).to(dtype).requires_grad_(grad)
    head = head_type(8, 50, bias=bias)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    head.to(dtype)
    out = token_logprobs(
        hidden,
        head,
        target_ids_N=torch.randint(0, 50, (37,), generator=generator),
        temperatures_N=TEMPERATURES,
        vocab_size=50,
        max_chunk_elements=chunk,
        entropy_gradient=entropy_gradient,
    )
    if not grad:
        return out.logprobs_N, out.entropy_N
    loss = (out.logprobs_N * torch.linspace(-1, 1, 37)).sum()
    assert out.entropy_N.requires_grad == entropy_gradient
    if entropy_gradient:
        loss = loss + (out.entropy_N * torch.linspace(1, -2, 37)).sum()
    loss.backward()
    found = [hidden.grad, *(weight.grad for weight in head.parameters())]
    assert all(gradient is not None for gradient in found)
    return out.logprobs_N.detach(), out.entropy_N.detach(), *found  # type: ignore[return-value]


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


@HEADS
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("chunk", [1, 50, 333, 50 * 37])
def test_chunks_change_neither_values_nor_gradients(
    chunk: int, entropy_gradient: bool, bias: bool, head_type: type[torch.nn.Linear]
) -> None:
    same = {"entropy_gradient": entropy_gradient, "bias": bias}
    got = scored(chunk, head_type=head_type, **same)
    for one, whole in zip(got, scored(10**6, **same), strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-5, atol=1e-5)


def test_gradients_in_closed_form_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    head = torch.nn.Linear(3, 6).double()
    targets = torch.tensor([0, 5, 2, 2, 1])

    def scores(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias) / TEMPERATURES[:5, None]
        logprobs = torch.log_softmax(logits, -1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0].sum() + 0.7 * entropy.sum()

    inputs = [hidden, head.weight.detach(), head.bias.detach()]
    want = []
    for number, tensor in enumerate(inputs):
        gradient = torch.zeros_like(tensor)
        for place in range(tensor.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [each.clone() for each in inputs]
                moved[number].view(-1)[place] += step
                ends.append(scores(*moved))
            gradient.view(-1)[place] = (ends[0] - ends[1]) / 2e-6
        want.append(gradient)
    hidden.requires_grad_()
    out = token_logprobs(
        hidden,
        head,
        target_ids_N=targets,
        temperatures_N=TEMPERATURES[:5],
        vocab_size=6,
        max_chunk_elements=12,
        entropy_gradient=True,
    )
    (out.logprobs_N.sum() + 0.7 * out.entropy_N.sum()).backward()
    for got, right in zip((hidden.grad, head.weight.grad, head.bias.grad), want, strict=True):
        assert got is not None
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_16_bit_head_is_summed_in_32() -> None:
    """In bfloat16 a sum of equal numbers stands still at 256 of them."""

    def gradient(chunk_ids: int) -> torch.Tensor:
        head = torch.nn.Linear(4, 10, bias=False, dtype=torch.bfloat16)
        torch.nn.init.zeros_(head.weight)
        out = token_logprobs(
            torch.ones(1024, 4, dtype=torch.bfloat16),
            head,
            target_ids_N=torch.zeros(1024, dtype=torch.int64),
            temperatures_N=torch.ones(1024),
            vocab_size=10,
            max_chunk_elements=10 * chunk_ids,
        )
        out.logprobs_N.sum().backward()
        assert head.weight.grad is not None
        return head.weight.grad.float()

    torch.testing.assert_close(gradient(1), gradient(1024), rtol=2e-2, atol=0)


def test_a_tied_head_adds_to_the_gradient_of_its_embedding() -> None:
    def gradient(chunk: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        embedding = torch.nn.Embedding(30, 4)
        head = torch.nn.Linear(4, 30, bias=False)
        with torch.no_grad():
            embedding.weight.copy_(torch.randn(30, 4, generator=generator))
        head.weight = embedding.weight
        ids = torch.randint(0, 30, (20,), generator=generator)
        out = token_logprobs(
            embedding(ids).tanh(),
            head,
            target_ids_N=ids.roll(1),
            temperatures_N=torch.ones(20),
            vocab_size=30,
            max_chunk_elements=chunk,
        )
        out.logprobs_N.sum().backward()
        assert embedding.weight.grad is not None
        return embedding.weight.grad

    torch.testing.assert_close(gradient(90), gradient(10**6), rtol=1e-5, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Watches every operation, in both directions, for the largest tensor that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.num_elements = max(self.num_elements, leaf.numel())
        return made


@HEADS
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_no_tensor_in_either_direction_is_larger_than_a_chunk(
    head_type: type[torch.nn.Linear], entropy_gradient: bool
) -> None:
    """2,048 ids of a vocabulary of 4,000, in chunks of 16 ids; the naive way makes 8.2 M."""
    hidden = torch.randn(2048, 8, requires_grad=True)
    head = head_type(8, 4000, bias=False)
    with LargestTensor() as watched:
        out = token_logprobs(
            hidden,
            head,
            target_ids_N=torch.arange(2048),
            temperatures_N=torch.ones(2048),
            vocab_size=4000,
            max_chunk_elements=16 * 4000,
            entropy_gradient=entropy_gradient,
        )
        (out.logprobs_N.sum() + out.entropy_N.sum()).backward()
    assert watched.num_elements == 16 * 4000


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
