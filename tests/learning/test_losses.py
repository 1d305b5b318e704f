from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch

from palestra.config_training import (
    OBJECTIVES,
    ClipRule,
    KlEstimator,
    LossName,
    Objective,
    TrainingSection,
)
from palestra.learning.training.losses import kl_to_reference, loss_scale, policy_loss
from palestra.learning.training.schedule import lr_at

DAPO = OBJECTIVES["dapo"]
CISPO = OBJECTIVES["cispo"]


def loss_of(
    ratio: float, advantage: float, weight: float = 1.0, objective: Objective = DAPO
) -> tuple[float, bool, float]:
    """Loss, clipped?, and gradient with respect to the logprob of one id."""
    logprob = torch.tensor([math.log(ratio) - 2.0], requires_grad=True)
    out = policy_loss(
        logprobs_N=logprob,
        old_logprobs_N=torch.tensor([-2.0]),
        advantages_N=torch.tensor([advantage]),
        weights_N=torch.tensor([weight]),
        row_N=torch.tensor([0]),
        objective=objective,
    )
    out.loss_N.sum().backward()
    assert logprob.grad is not None
    return float(out.loss_N.detach()), bool(out.clipped_N), float(logprob.grad)


# --- clips by hand --------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped", "gradient"),
    [
        (1.0, 2.0, False, -2.0),
        (4.0, 1.0, False, -4.0),
        (8.0, 1.0, True, -5.0),  # bounded as a weight, and still learnt from
        (8.0, -1.0, True, 5.0),
        (0.01, 1.0, False, -0.01),  # no lower bound
    ],
)
def test_cispo_bounds_the_weight_and_keeps_the_gradient(
    ratio: float, advantage: float, clipped: bool, gradient: float
) -> None:
    loss, was_clipped, got = loss_of(ratio, advantage, objective=CISPO)
    assert got == pytest.approx(gradient, rel=1e-5)
    assert was_clipped is clipped
    assert loss == pytest.approx(gradient * (math.log(ratio) - 2.0), rel=1e-5)


def test_without_a_clip_the_ratio_goes_anywhere() -> None:
    loss, clipped, gradient = loss_of(50.0, 1.0, objective=OBJECTIVES["rloo"])
    assert (loss, clipped, gradient) == (pytest.approx(-50), False, pytest.approx(-50))


def test_the_weight_scales_loss_and_gradient() -> None:
    plain, _, gradient = loss_of(1.1, 1.5)
    weighted, _, weighted_gradient = loss_of(1.1, 1.5, weight=0.7)
    assert weighted == pytest.approx(0.7 * plain, rel=1e-6)
    assert weighted_gradient == pytest.approx(0.7 * gradient, rel=1e-6)


@pytest.mark.parametrize("name", get_args(LossName))
@pytest.mark.parametrize("new", [0.0, -math.inf], ids=["inf", "nan"])
def test_a_masked_id_with_an_impossible_ratio_gives_zero_not_nan(
    new: float, name: LossName
) -> None:
    logprobs = torch.tensor([new, -1.0], requires_grad=True)
    out = policy_loss(
        logprobs_N=logprobs,
        old_logprobs_N=torch.tensor([-math.inf, -1.0]),
        advantages_N=torch.tensor([1.0, 1.0]),
        weights_N=torch.tensor([0.0, 1.0]),
        row_N=torch.tensor([0, 0]),
        objective=OBJECTIVES[name],
    )
    out.loss_N.sum().backward()
    value = 1.0 if name == "cispo" else -1.0  # CISPO's value is a logprob, not a ratio
    assert out.loss_N.tolist() == [0.0, value]
    assert out.clipped_N.tolist() == [False, False], "a masked id is not a clipped one"
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, -1.0]


def test_a_sequence_ratio_by_hand() -> None:
    """Row 0 has ratios 2 and 1/2 and 1 (mean of logs 0), row 1 has 3 and 3."""
    logs = torch.tensor([2.0, 0.5, 1.0, 3.0, 3.0]).log()
    logprobs = (logs - 4.0).requires_grad_()
    out = policy_loss(
        logprobs_N=logprobs,
        old_logprobs_N=torch.full((5,), -4.0),
        advantages_N=torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]),
        weights_N=torch.ones(5),
        row_N=torch.tensor([7, 7, 7, 3, 3]),
        objective=OBJECTIVES["gspo"],
    )
    assert out.loss_N.tolist() == pytest.approx([-1, -1, -1, 3, 3], rel=1e-6)
    out.loss_N.sum().backward()
    # Each id of a row moves the ratio of the whole row by 1 / length.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1, -1, -1, 3, 3], rel=1e-6)


# --- each named loss against numpy ----------------------------------------------

LENGTHS = [3, 7, 1, 5]
ROLLOUTS = ["a", "b", "b", "c"]  # the agent of b rewrote its history once
FIXED = 20


class Twin:
    """The losses once more, in loops over sequences, sharing no code with ours."""

    def __init__(self, name: LossName, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.name = name
        self.old = [rng.normal(-2, 0.5, n) for n in LENGTHS]
        spread = 2e-3 if name == "gspo" else 0.3
        self.new = [old + rng.normal(0, spread, len(old)) for old in self.old]
        self.advantages = rng.normal(0, 1, len(LENGTHS))
        self.weights = [rng.uniform(0.5, 1.5, n) for n in LENGTHS]

    def loss(self, new: Sequence[np.ndarray[Any, Any]]) -> float:
        num_rollouts, total, num_ids = 3, 0.0, 16
        for i, length in enumerate(LENGTHS):
            ratio = np.exp(new[i] - self.old[i])
            if self.name == "gspo":
                ratio = np.full(length, np.exp(np.mean(new[i] - self.old[i])))
            of_ids = self.weights[i] * self.surrogate(ratio, i, new[i])
            if self.name in ("grpo", "gspo"):
                length_of_rollout = {"a": 3, "b": 8, "c": 5}[ROLLOUTS[i]]
                total += of_ids.sum() / length_of_rollout / num_rollouts
            elif self.name in ("dr_grpo", "rloo"):
                total += of_ids.sum() / FIXED / num_rollouts
            else:
                total += of_ids.sum() / num_ids
        return -total

    def surrogate(
        self, ratio: np.ndarray[Any, Any], i: int, new: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        advantage = self.advantages[i]
        if self.name == "rloo":
            return ratio * advantage
        if self.name == "cispo":  # the ratio does not move with the weights
            frozen = np.exp(self.new[i] - self.old[i])
            return np.minimum(frozen, 5.0) * advantage * new
        low, high = {"gspo": (0.9997, 1.0004), "dapo": (0.8, 1.28)}.get(self.name, (0.8, 1.2))
        return np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)

    def gradient(self) -> np.ndarray[Any, Any]:
        step, found = 1e-7, []
        for i, length in enumerate(LENGTHS):
            for t in range(length):
                ends = []
                for sign in (1, -1):
                    moved = [row.copy() for row in self.new]
                    moved[i][t] += sign * step
                    ends.append(self.loss(moved))
                found.append((ends[0] - ends[1]) / (2 * step))
        return np.array(found)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", get_args(LossName))
def test_each_named_loss_against_numpy(name: LossName, seed: int) -> None:
    twin = Twin(name, seed)
    objective = TrainingSection(loss=name).objective
    logprobs = torch.tensor(np.concatenate(twin.new), requires_grad=True)
    row_N = torch.tensor(np.repeat(range(4), LENGTHS))
    out = policy_loss(
        logprobs_N=logprobs,
        old_logprobs_N=torch.tensor(np.concatenate(twin.old)),
        advantages_N=torch.tensor(twin.advantages)[row_N],
        weights_N=torch.tensor(np.concatenate(twin.weights)),
        row_N=row_N,
        objective=objective,
    )
    scale = loss_scale(ROLLOUTS, LENGTHS, aggregation=objective.aggregation, fixed_length=FIXED)
    loss = (
        out.loss_N * torch.tensor(scale.share_R, dtype=torch.float64)[row_N]
    ).sum() / scale.denominator
    loss.backward()
    assert float(loss.detach()) == pytest.approx(twin.loss(twin.new), rel=1e-12)
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad.numpy(), twin.gradient(), rtol=1e-5, atol=1e-8)
    if name not in ("rloo", "cispo"):
        assert out.clipped_N.any(), "a test without a clipped id says nothing about the bounds"


@pytest.mark.parametrize(
    ("name", "clip", "bounds", "advantage", "aggregation"),
    [
        ("grpo", "ppo", (0.2, 0.2), "group_std", "sequence_mean"),
        ("dr_grpo", "ppo", (0.2, 0.2), "group_mean", "fixed_length"),
        ("dapo", "ppo", (0.2, 0.28), "group_std", "token_mean"),
        ("gspo", "ppo", (3e-4, 4e-4), "group_std", "sequence_mean"),
        ("cispo", "cispo", (1.0, 4.0), "group_std", "token_mean"),
        ("rloo", "none", (0.2, 0.2), "leave_one_out", "fixed_length"),
        ("reinforce_plus_plus_baseline", "ppo", (0.2, 0.2), "batch_std", "token_mean"),
    ],
)
def test_a_name_is_its_papers_choices_and_single_keys_replace_one(
    name: LossName, clip: ClipRule, bounds: tuple[float, float], advantage: str, aggregation: str
) -> None:
    objective = TrainingSection(loss=name).objective
    assert objective.clip == clip
    assert (objective.clip_low, objective.clip_high) == bounds
    assert (objective.advantage, objective.aggregation) == (advantage, aggregation)
    assert objective.ratio == ("sequence" if name == "gspo" else "token")
    other = TrainingSection(loss=name, advantage="group_mean", aggregation="token_mean").objective
    assert (other.advantage, other.aggregation) == ("group_mean", "token_mean")
    assert (other.clip, other.ratio, other.clip_high) == (clip, objective.ratio, bounds[1])


# --- aggregation ----------------------------------------------------------------


def test_scales_by_hand() -> None:
    """Rollout a has 2 ids, b has 6 on two rows."""
    rollouts, counts = ["a", "b", "b"], [2, 4, 2]

    def of(aggregation: Any) -> list[float]:
        scale = loss_scale(rollouts, counts, aggregation=aggregation, fixed_length=10)
        return [share / scale.denominator for share in scale.share_R]

    assert of("token_mean") == pytest.approx([1 / 8] * 3)
    assert of("sequence_mean") == pytest.approx([1 / 4, 1 / 12, 1 / 12])
    assert of("fixed_length") == pytest.approx([1 / 20] * 3)


# --- KL -------------------------------------------------------------------------


def test_kl_estimators_by_hand() -> None:
    """The policy gives 1/2, the reference 1/4: d = log 2."""
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    d = math.log(2)
    for estimator, want in (("k1", d), ("k2", d * d / 2), ("k3", 0.5 + d - 1)):
        got = kl_to_reference(policy, reference, estimator)  # type: ignore[arg-type]
        assert float(got) == pytest.approx(want), estimator


NUMPY_KL: dict[KlEstimator, Callable[[Any], Any]] = {
    "k1": lambda d: d,
    "k2": lambda d: d**2 / 2,
    "k3": lambda d: np.exp(-d) + d - 1,
}


@pytest.mark.parametrize("estimator", get_args(KlEstimator))
def test_kl_against_numpy(estimator: KlEstimator) -> None:
    rng = np.random.default_rng(1)
    policy, reference = rng.normal(-2, 1, 300), rng.normal(-2, 1, 300)
    got = kl_to_reference(torch.tensor(policy), torch.tensor(reference), estimator).numpy()
    np.testing.assert_allclose(got, NUMPY_KL[estimator](policy - reference), rtol=1e-12)
    assert estimator == "k1" or (got >= 0).all()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_pulls_towards_the_reference_and_never_overflows(estimator: KlEstimator) -> None:
    logprobs = torch.tensor([-1.0, -3.0, -500.0], requires_grad=True)
    kl = kl_to_reference(logprobs, torch.tensor([-2.0, -2.0, -1.0]), estimator)
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert logprobs.grad is not None
    assert logprobs.grad[0] > 0  # likelier than the reference: descending lowers it
    assert logprobs.grad[1] < 0
    assert torch.isfinite(logprobs.grad).all()


def two_policies() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), -1)
        for _ in range(2)
    )
    return first, second


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimates_of_the_true_kl(estimator: KlEstimator) -> None:
    policy, reference = two_policies()
    kl = float((policy.exp() * (policy - reference)).sum())
    expected = float((policy.exp() * kl_to_reference(policy, reference, estimator)).sum())
    assert expected == pytest.approx(kl, rel=1e-9)


def test_expected_gradients_are_what_the_docstring_says() -> None:
    """Of k1 nothing, of k2 that of the KL, over all ids weighted as they are drawn."""
    start, reference = two_policies()
    found = {}
    for estimator in ("k1", "k2"):
        logits = start.clone().requires_grad_()
        logprobs = torch.log_softmax(logits, -1)
        (start.exp() * kl_to_reference(logprobs, reference, estimator)).sum().backward()  # type: ignore[arg-type]
        found[estimator] = logits.grad
    logits = start.clone().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    (logprobs.exp() * (logprobs - reference)).sum().backward()
    torch.testing.assert_close(found["k1"], torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found["k2"], logits.grad)


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
