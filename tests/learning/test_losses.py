from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from palestra.learning.training.logprobs import token_logprobs
from palestra.learning.training.losses import k3_kl, policy_loss
from palestra.learning.training.schedule import lr_at


def loss_of(ratio: float, advantage: float, weight: float = 1.0) -> tuple[float, bool, float]:
    """Loss, clipped?, and gradient with respect to the logprob of one id."""
    logprob = torch.tensor([math.log(ratio) - 2.0], requires_grad=True)
    out = policy_loss(
        logprobs_N=logprob,
        old_logprobs_N=torch.tensor([-2.0]),
        advantages_N=torch.tensor([advantage]),
        weights_N=torch.tensor([weight]),
        clip_low=0.2,
        clip_high=0.28,
    )
    out.loss_N.sum().backward()
    assert logprob.grad is not None
    return float(out.loss_N.detach()), bool(out.clipped_N), float(logprob.grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (1.0, 2.0, -2.0, False, -2.0),  # on-policy: the policy gradient
        (1.2, 1.0, -1.2, False, -1.2),  # within the bounds
        (1.5, 1.0, -1.28, True, 0.0),  # good and already likelier: held at the upper bound
        (1.5, -1.0, 1.5, False, 1.5),  # bad and likelier: pushed down without a bound
        (0.5, -1.0, 0.8, True, 0.0),  # bad and already unlikelier: held at the lower bound
        (0.5, 1.0, -0.5, False, -0.5),  # good and unlikelier: pulled up without a bound
    ],
)
def test_the_clip_by_hand(
    ratio: float, advantage: float, loss: float, clipped: bool, gradient: float
) -> None:
    got = loss_of(ratio, advantage)
    assert got[0] == pytest.approx(loss, rel=1e-6)
    assert got[1] is clipped
    assert got[2] == pytest.approx(gradient, rel=1e-6, abs=1e-7)


def test_the_weight_scales_loss_and_gradient() -> None:
    plain, _, gradient = loss_of(1.1, 1.5)
    weighted, _, weighted_gradient = loss_of(1.1, 1.5, weight=0.7)
    assert weighted == pytest.approx(0.7 * plain, rel=1e-6)
    assert weighted_gradient == pytest.approx(0.7 * gradient, rel=1e-6)


@pytest.mark.parametrize("new", [0.0, -math.inf], ids=["inf", "nan"])
def test_a_masked_id_with_an_impossible_ratio_gives_zero_not_nan(new: float) -> None:
    logprobs = torch.tensor([new, -1.0], requires_grad=True)
    out = policy_loss(
        logprobs_N=logprobs,
        old_logprobs_N=torch.tensor([-math.inf, -1.0]),
        advantages_N=torch.tensor([1.0, 1.0]),
        weights_N=torch.tensor([0.0, 1.0]),
        clip_low=0.2,
        clip_high=0.28,
    )
    out.loss_N.sum().backward()
    assert out.loss_N.tolist() == [0.0, -1.0]
    assert out.clipped_N.tolist() == [False, False], "a masked id is not a clipped one"
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, -1.0]


def test_policy_loss_against_numpy() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.normal(-2, 1, 500), rng.normal(-2, 1, 500)
    advantages, weights = rng.normal(size=500), rng.uniform(0, 2, 500)
    ratio = np.exp(new - old)
    want = -weights * np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.28) * advantages)
    out = policy_loss(
        logprobs_N=torch.tensor(new),
        old_logprobs_N=torch.tensor(old),
        advantages_N=torch.tensor(advantages),
        weights_N=torch.tensor(weights),
        clip_low=0.2,
        clip_high=0.28,
    )
    np.testing.assert_allclose(out.loss_N.numpy(), want, rtol=1e-12)


def test_k3_by_hand_and_against_numpy() -> None:
    one = k3_kl(torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)]))
    assert float(one) == pytest.approx(0.5 - math.log(0.5) - 1)
    rng = np.random.default_rng(1)
    policy, reference = rng.normal(-2, 1, 300), rng.normal(-2, 1, 300)
    got = k3_kl(torch.tensor(policy), torch.tensor(reference)).numpy()
    difference = reference - policy
    np.testing.assert_allclose(got, np.exp(difference) - difference - 1, rtol=1e-12)
    assert (got >= 0).all()


def test_k3_gradient_pulls_towards_the_reference_and_never_overflows() -> None:
    logprobs = torch.tensor([-1.0, -3.0, -500.0], requires_grad=True)
    kl = k3_kl(logprobs, torch.tensor([-2.0, -2.0, -1.0]))
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert logprobs.grad is not None
    assert logprobs.grad[0] > 0  # likelier than the reference: descending lowers it
    assert logprobs.grad[1] < 0
    assert torch.isfinite(logprobs.grad).all()


def test_k3_estimates_the_true_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (
        torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), -1)
        for _ in range(2)
    )
    kl = float((policy.exp() * (policy - reference)).sum())
    expected = float((policy.exp() * k3_kl(policy, reference)).sum())
    assert expected == pytest.approx(kl, rel=1e-9)


# --- log-probabilities ----------------------------------------------------------


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


# --- learning rate --------------------------------------------------------------


def test_learning_rates_by_hand() -> None:
    def rates(decay: str) -> list[float]:
        return [
            lr_at(step, peak_lr=1.0, warmup_steps=2, total_steps=6, decay=decay)  # type: ignore[arg-type]
            for step in range(8)
        ]

    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    half = math.sqrt(0.5) / 2
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.5 + half, 0.5, 0.5 - half, 0, 0])


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert lr_at(0, peak_lr=3e-4, warmup_steps=0, total_steps=10, decay="cosine") == 3e-4
