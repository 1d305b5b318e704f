"""The hook for Miles' policy loss weighs as our own correction does."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch

from palestra.backends.miles import mis
from palestra.config import CorrectionSection
from palestra.errors import ConfigError
from palestra.learning.training.correction import importance_weights

LENGTHS = [7, 1, 30, 12]


def batch(seed: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    rollout = [-3 * torch.rand(n, generator=draw) for n in LENGTHS]
    train = [r + 0.6 * torch.randn(len(r), generator=draw) for r in rollout]
    train[2][4] = rollout[2][4] - 12.0  # a catastrophic id
    masks = [(torch.rand(n, generator=draw) > 0.3).float() for n in LENGTHS]
    masks[2][4] = 1.0
    masks[1][:] = 0.0  # nothing of this one was sampled
    return {
        "pg_loss": torch.randn(sum(LENGTHS), generator=draw),
        "train_log_probs": train,
        "rollout_log_probs": rollout,
        "loss_masks": masks,
        "total_lengths": [n + 5 for n in LENGTHS],
        "response_lengths": LENGTHS,
        "parallel_state": None,
        "max_seq_lens": None,
    }


def arguments(**more: Any) -> Namespace:
    known = {
        "use_tis": True,
        "use_rs": True,
        "tis_mode": "mask",
        "tis_level": "token",
        "tis_lower_bound": 0.5,
        "tis_upper_bound": 2.0,
        "rs_lower_bound": None,
        "rs_upper_bound": None,
        "rs_veto_threshold": 1e-4,
        "tis_batch_normalize": False,
        "context_parallel_size": 1,
    }
    return Namespace(**(known | more))


@pytest.mark.parametrize("mode", ["truncate", "mask", "clip"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("veto", [1e-4, None])
def test_equal_to_our_own_correction(mode: Any, level: Any, veto: float | None) -> None:
    args = arguments(tis_mode=mode, tis_level=level, rs_level=level, rs_veto_threshold=veto)
    given = batch(seed=3)
    loss, masks, metrics = mis(args, **given)
    section = CorrectionSection(mode=mode, level=level, low=0.5, high=2.0, veto=veto or 0.0)
    flat_mask = torch.cat(given["loss_masks"]).bool()
    rows = torch.cat([torch.full((n,), i) for i, n in enumerate(LENGTHS)])
    weights = importance_weights(
        train_logprobs_N=torch.cat(given["train_log_probs"])[flat_mask],
        rollout_logprobs_N=torch.cat(given["rollout_log_probs"])[flat_mask],
        row_N=rows[flat_mask],
        section=section,
    )
    assert torch.equal(loss[flat_mask], given["pg_loss"][flat_mask] * weights)
    assert torch.equal(loss[~flat_mask], torch.zeros_like(loss[~flat_mask]))
    assert all(torch.equal(a, b) for a, b in zip(masks, given["loss_masks"], strict=True))
    assert all(values.shape == loss.shape for values in metrics.values())
    assert torch.equal(metrics["mis_is_ratio_mean_final"][flat_mask], weights)
    if veto is not None:
        assert not loss[8:38].any(), "the sequence with the catastrophic id"


def test_without_use_tis_the_loss_is_left_alone() -> None:
    given = batch(seed=4)
    loss, _, metrics = mis(arguments(use_tis=False), **given)
    assert torch.equal(loss, given["pg_loss"])
    assert "mis_kl" in metrics


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tis_batch_normalize": True}, "tis_batch_normalize"),
        ({"rs_upper_bound": 3.0}, "rs_upper_bound is 3"),
        ({"rs_level": "sequence"}, "rs_level is sequence"),
        ({"tis_mode": "forget"}, "mode"),
        ({"tis_level": "word", "rs_level": "word"}, "level"),
        ({"tis_lower_bound": 3.0}, "below high"),
    ],
)
def test_what_it_does_not_know_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mis(arguments(**more), **batch(seed=5))


def test_no_gradient_flows_through_the_weights() -> None:
    given = batch(seed=6)
    given["pg_loss"].requires_grad_()
    given["train_log_probs"][0].requires_grad_()
    loss, _, _ = mis(arguments(), **given)
    loss.sum().backward()
    assert given["train_log_probs"][0].grad is None
