"""The hook for Miles' policy loss weighs as our own correction does."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
import pytest
import torch

from palestra.backends.miles import mis
from palestra.backends.miles.mismatch import correction_section
from palestra.config_training import CorrectionSection
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
    section = CorrectionSection(
        mode=mode,
        level=level,
        low=0.5,
        high=2.0,
        veto=veto or 0.0,
        reject="off" if mode == "mask" else level,  # with use_rs Miles masks by level too
    )
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


MIS_YAML: dict[str, Any] = {
    "use_tis": True,
    "use_rs": True,
    "tis_level": "token",
    "rs_level": "geometric",
    "tis_mode": "truncate",
    "tis_lower_bound": 0.5,
    "tis_upper_bound": 1.5,
    "rs_lower_bound": 0.7,
    "rs_upper_bound": 1.3,
    "rs_veto_threshold": 1.0e-4,
    "tis_batch_normalize": True,
}


def weights_by_the_book(given: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """The keys of MIS_YAML as Miles' file describes them, one sequence at a time."""
    kept = []
    sequences = zip(
        given["train_log_probs"], given["rollout_log_probs"], given["loss_masks"], strict=True
    )
    for train, rollout, mask in sequences:
        log_ratio, m = (train - rollout).double().numpy(), mask.numpy().astype(bool)
        weights = np.minimum(np.exp(log_ratio), 1.5) * m
        if m.any():
            geometric = np.exp(log_ratio[m].mean())
            if not 0.7 <= geometric <= 1.3 or np.exp(log_ratio[m]).min() < 1e-4:
                weights *= 0
        kept.append(weights)
    num_ids = sum(float(mask.sum()) for mask in given["loss_masks"])
    mean = sum(weights.sum() for weights in kept) / num_ids
    return [weights / mean for weights in kept]


@pytest.mark.parametrize("seed", range(4))
def test_all_keys_of_miles_own_file_at_once(seed: int) -> None:
    given = batch(seed=seed)
    loss, _, metrics = mis(arguments(**MIS_YAML), **given)
    want = np.concatenate(weights_by_the_book(given))
    assert 0 < (want > 0).mean() < 1
    np.testing.assert_allclose(loss.numpy(), given["pg_loss"].numpy() * want, rtol=2e-5, atol=1e-6)
    assert {
        "mis_tis_weight_before_bound",
        "mis_tis_weight_after_bound",
        "mis_tis_truncate_fraction",
        "mis_rs_mask_fraction_low",
        "mis_rs_mask_fraction_high",
        "mis_rs_catastrophic_token_fraction",
        "mis_rs_catastrophic_seq_fraction",
        "mis_is_ratio_mean_final",
        "mis_training_ppl",
        "mis_training_log_ppl",
        "mis_rollout_ppl",
        "mis_rollout_log_ppl",
        "mis_kl",
        "mis_k3_kl",
        "mis_log_ppl_diff",
        "mis_log_ppl_abs_diff",
        "mis_ppl_ratio",
        "mis_chi2_token",
        "mis_chi2_seq",
    } <= set(metrics)
    of_first = metrics["mis_training_ppl"][: LENGTHS[0]][given["loss_masks"][0].bool()]
    assert (of_first == of_first[0]).all(), "a sequence's perplexity stands at each of its ids"


@pytest.mark.parametrize("mode", ["mask", "clip"])
def test_a_missing_lower_bound_is_one_over_the_upper_one(mode: str) -> None:
    args = arguments(tis_mode=mode, tis_lower_bound=None, tis_upper_bound=4.0, use_rs=False)
    assert (correction_section(args).low, correction_section(args).high) == (0.25, 4.0)
    given = batch(seed=1)
    _, _, metrics = mis(args, **given)
    weights = metrics["mis_is_ratio_mean_final"][torch.cat(given["loss_masks"]).bool()]
    inside = (weights >= 0.25) & (weights <= 4.0)
    assert (inside | (weights == 0)).all() if mode == "mask" else inside.all()


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_no_weight_is_outside_the_bounds_of_a_mask(level: str) -> None:
    args = arguments(tis_level=level, tis_lower_bound=0.8, tis_upper_bound=1.2)
    _, _, metrics = mis(args, **batch(seed=2))
    weights = metrics["mis_is_ratio_mean_final"]
    assert ((weights == 0) | ((weights >= 0.8) & (weights <= 1.2))).all()
    assert (metrics["mis_tis_weight_before_bound"] > 1.2).any()


def test_without_use_tis_the_loss_is_left_alone() -> None:
    given = batch(seed=4)
    loss, _, metrics = mis(arguments(use_tis=False), **given)
    assert torch.equal(loss, given["pg_loss"])
    assert "mis_kl" in metrics


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rs_upper_bound": 0.4}, "below reject_high"),
        ({"rs_level": "word"}, "reject"),
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
