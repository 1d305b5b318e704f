from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from palestra.config_training import CorrectionSection
from palestra.learning.training.correction import correction_metrics, importance_weights

RATIOS = [1.0, 0.4, 0.6, 3.0, 1.9, 1e-5]
ROWS = [0, 0, 1, 1, 2, 3]


def logprobs(ratios: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    rollout = torch.full((len(ratios),), -12.0, dtype=torch.float64)
    return rollout + torch.tensor([math.log(r) for r in ratios], dtype=torch.float64), rollout


def weights(section: CorrectionSection, ratios: list[float] = RATIOS) -> list[float]:
    train, rollout = logprobs(ratios)
    got = importance_weights(
        train_logprobs_N=train,
        rollout_logprobs_N=rollout,
        row_N=torch.tensor(ROWS[: len(ratios)]),
        section=section,
    )
    return got.tolist()


def metrics(section: CorrectionSection, ratios: list[float] = RATIOS) -> dict[str, float]:
    train, rollout = logprobs(ratios)
    rows = torch.tensor(ROWS[: len(ratios)])
    chosen = importance_weights(
        train_logprobs_N=train, rollout_logprobs_N=rollout, row_N=rows, section=section
    )
    return correction_metrics(
        train_logprobs_N=train,
        rollout_logprobs_N=rollout,
        weights_N=chosen,
        row_N=rows,
        section=section,
    )


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("off", [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("truncate", [1.0, 0.4, 0.6, 2.0, 1.9, 1e-5]),
        ("clip", [1.0, 0.5, 0.6, 2.0, 1.9, 0.5]),
        ("mask", [1.0, 0.0, 0.6, 0.0, 1.9, 0.0]),
    ],
)
def test_modes_by_hand(mode: str, want: list[float]) -> None:
    assert weights(CorrectionSection(mode=mode, veto=0.0)) == pytest.approx(want)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("level", "want"),
    [
        ("sequence", [0.4, 0.4, 1.8, 1.8, 1.9, 1e-5]),
        ("geometric", [0.4**0.5, 0.4**0.5, 1.8**0.5, 1.8**0.5, 1.9, 1e-5]),
    ],
)
def test_levels_by_hand(level: str, want: list[float]) -> None:
    section = CorrectionSection(mode="truncate", level=level, veto=0.0)  # type: ignore[arg-type]
    assert weights(section) == pytest.approx(want)


def test_the_veto_looks_at_single_ids_at_every_level() -> None:
    ratios = [1e4, 1e-5, 1.0, 1.0, 1.0, 1.0]
    for level in ("token", "sequence", "geometric"):
        section = CorrectionSection(mode="truncate", level=level)  # type: ignore[arg-type]
        assert weights(section, ratios)[:2] == [0.0, 0.0]


def test_a_catastrophic_id_takes_its_whole_row_along() -> None:
    ratios = [1.0, 1e-5, 1.0, 1.0, 1.0, 1.0]
    assert weights(CorrectionSection(), ratios) == pytest.approx([0, 0, 1, 1, 1, 1])
    for mode in ("truncate", "clip"):
        assert weights(CorrectionSection(mode=mode), ratios)[:2] == [0.0, 0.0]  # type: ignore[arg-type]
    assert weights(CorrectionSection(mode="off"), ratios) == [1.0] * 6


def test_metrics_by_hand() -> None:
    got = metrics(CorrectionSection())
    assert got["mis_tis_mask_fraction_low"] == pytest.approx(2 / 6)
    assert got["mis_tis_mask_fraction_high"] == pytest.approx(1 / 6)
    assert got["mis_rs_catastrophic_token_fraction"] == pytest.approx(1 / 6)
    assert got["mis_rs_catastrophic_seq_fraction"] == pytest.approx(1 / 4)
    assert got["mis_tis_weight_before_bound"] == pytest.approx(sum(RATIOS) / 6)
    assert got["mis_tis_weight_before_bound_max"] == pytest.approx(3.0)
    assert got["mis_tis_weight_before_bound_min"] == pytest.approx(1e-5)
    assert got["mis_is_ratio_mean_final"] == pytest.approx((1.0 + 0.6 + 1.9) / 6)
    logs = np.log(RATIOS)
    assert got["mis_kl"] == pytest.approx(-logs.mean())
    assert got["mis_k3_kl"] == pytest.approx((np.array(RATIOS) - logs - 1).mean())
    assert got["train_rollout_logprob_abs_diff"] == pytest.approx(np.abs(logs).mean())
    by_row = [logs[:2].mean(), logs[2:4].mean(), logs[4], logs[5]]
    assert got["mis_rollout_log_ppl"] == pytest.approx(12.0)
    assert got["mis_rollout_ppl"] == pytest.approx(math.exp(12.0))
    assert got["mis_training_log_ppl"] == pytest.approx(12.0 - np.mean(by_row))
    assert got["mis_training_ppl"] == pytest.approx(np.exp(12.0 - np.array(by_row)).mean())
    assert got["mis_log_ppl_diff"] == pytest.approx(-np.mean(by_row))
    assert got["mis_ppl_ratio"] == pytest.approx(np.exp(-np.array(by_row)).mean())


def test_metrics_name_the_mode() -> None:
    assert metrics(CorrectionSection(mode="truncate"))["mis_tis_truncate_fraction"] == 1 / 6
    clip = metrics(CorrectionSection(mode="clip"))
    assert clip["mis_tis_clip_fraction_low"] == pytest.approx(2 / 6)
    off = metrics(CorrectionSection(mode="off"))
    assert not [name for name in off if "fraction" in name], "nothing was corrected"
    assert off["mis_k3_kl"] > 0, "the mismatch is told all the same"


def test_equal_engines_give_ratio_one() -> None:
    got = metrics(CorrectionSection(), [1.0] * 6)
    assert got["mis_tis_weight_before_bound"] == 1.0
    assert got["mis_k3_kl"] == 0.0
    assert got["mis_log_ppl_abs_diff"] == 0.0
    assert weights(CorrectionSection(), [1.0] * 6) == [1.0] * 6


def test_weights_take_no_gradient_and_never_overflow() -> None:
    train = torch.tensor([-1.0, -900.0], requires_grad=True)
    got = importance_weights(
        train_logprobs_N=train,
        rollout_logprobs_N=torch.tensor([-900.0, -1.0]),
        row_N=torch.tensor([0, 1]),
        section=CorrectionSection(mode="clip"),
    )
    assert not got.requires_grad
    assert got.tolist() == [2.0, 0.0]


# --- rejection, normalisation, IcePop -------------------------------------------


def test_rejection_masks_at_its_own_level_and_bounds() -> None:
    """Geometric means of the rows: 0.63, 1.34, 1.9 and 1e-5."""
    section = CorrectionSection(
        mode="truncate", veto=0.0, reject="geometric", reject_low=0.7, reject_high=1.5
    )
    assert weights(section) == pytest.approx([0, 0, 0.6, 2.0, 0, 0])
    got = metrics(section)
    assert got["mis_rs_mask_fraction_low"] == pytest.approx(3 / 6)
    assert got["mis_rs_mask_fraction_high"] == pytest.approx(1 / 6)
    assert got["mis_tis_weight_after_bound"] == pytest.approx(
        (1.0 + 0.4 + 0.6 + 2.0 + 1.9 + 1e-5) / 6
    )
    assert got["mis_is_ratio_mean_final"] == pytest.approx((0.6 + 2.0) / 6)
    assert (got["mis_is_ratio_min_final"], got["mis_is_ratio_max_final"]) == (0.0, 2.0)


def test_bounds_of_the_rejection_are_those_of_the_weights_where_none_are_named() -> None:
    section = CorrectionSection(mode="clip", veto=0.0, reject="token")
    assert section.reject_bounds == (0.5, 2.0)
    assert weights(section) == pytest.approx([1.0, 0, 0.6, 0, 1.9, 0])


def test_normalised_weights_have_the_mean_one() -> None:
    by_id = weights(CorrectionSection(normalize=True))
    assert np.mean(by_id) == pytest.approx(1.0)
    assert by_id == pytest.approx([w * 6 / 3.5 for w in [1.0, 0, 0.6, 0, 1.9, 0]])
    section = CorrectionSection(mode="truncate", level="sequence", veto=0.0, normalize=True)
    by_row = [weights(section)[first] for first in (0, 2, 4, 5)]
    assert np.mean(by_row) == pytest.approx(1.0), "rows count once, however long"
    assert by_row[1] / by_row[0] == pytest.approx(1.8 / 0.4)


def test_nothing_is_normalised_where_everything_is_masked() -> None:
    section = CorrectionSection(normalize=True, veto=0.9)
    assert weights(section, [0.1, 0.1]) == [0.0, 0.0]


def test_icepop_masks_single_ids_between_a_half_and_five() -> None:
    section = CorrectionSection(mode="icepop")
    assert (section.low, section.high, section.veto) == (0.5, 5.0, 0.0)
    assert weights(section) == pytest.approx([1.0, 0.0, 0.6, 3.0, 1.9, 0.0])
    assert metrics(section)["mis_tis_mask_fraction_low"] == pytest.approx(2 / 6)
    assert CorrectionSection(mode="icepop", high=3.0, veto=0.1).high == 3.0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"low": 2.0, "high": 1.0}, "below high"),
        ({"mode": "icepop", "level": "geometric"}, "single tokens"),
        ({"mode": "off", "reject": "token"}, "corrects nothing"),
        ({"mode": "off", "normalize": True}, "corrects nothing"),
        ({"reject_low": 0.1}, "name a level"),
        ({"reject": "token", "reject_low": 3.0}, "below reject_high"),
        ({"mode": "forget"}, "Input should be"),
        ({"reject": "word"}, "Input should be"),
    ],
)
def test_combinations_without_a_meaning_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CorrectionSection(**keys)


def test_chi_squared_by_hand() -> None:
    got = metrics(CorrectionSection(), [2.0, 0.5, 3.0])
    assert got["mis_chi2_token"] == pytest.approx((3 + (0.25 - 1) + 8) / 3)
    assert got["mis_chi2_seq"] == pytest.approx((0 + 8) / 2), "of row 0 the product is 1"


def test_modes_against_numpy() -> None:
    rng = np.random.default_rng(0)
    train, rollout = rng.normal(-2, 0.6, 400), rng.normal(-2, 0.6, 400)
    rows = rng.integers(0, 20, 400)
    ratio = np.exp(train - rollout)
    vetoed = {r for r, x in zip(rows, ratio, strict=True) if x < 0.15}
    keep = np.array([r not in vetoed for r in rows])
    assert 0 < keep.mean() < 1
    want = {
        "truncate": np.minimum(ratio, 2.0) * keep,
        "clip": np.clip(ratio, 0.5, 2.0) * keep,
        "mask": np.where((ratio >= 0.5) & (ratio <= 2.0), ratio, 0) * keep,
    }
    for mode, expected in want.items():
        got = importance_weights(
            train_logprobs_N=torch.tensor(train),
            rollout_logprobs_N=torch.tensor(rollout),
            row_N=torch.tensor(rows),
            section=CorrectionSection(mode=mode, veto=0.15),  # type: ignore[arg-type]
        )
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_crossed_bounds_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be below"):
        CorrectionSection(low=2.0, high=0.5)
