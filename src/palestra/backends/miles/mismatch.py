"""Masked importance sampling for Miles' policy loss: our correction behind Miles' hook."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import ValidationError

from palestra.config_training import CorrectionSection
from palestra.errors import ConfigError
from palestra.learning.training.correction import importance_weights, mismatch_metrics

NO_BOUND = 1e9
"""An upper bound above every ratio, since those are held below exp(20)."""


def mis(
    args: Namespace,
    *,
    pg_loss: torch.Tensor,
    train_log_probs: Sequence[torch.Tensor],
    rollout_log_probs: Sequence[torch.Tensor],
    loss_masks: Sequence[torch.Tensor],
    total_lengths: Sequence[int],
    response_lengths: Sequence[int],
    **kwargs: Any,
) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    """Weigh the policy loss of each id against the mismatch of engine and trainer.

    The weights are those of :mod:`palestra.learning.training.correction`. Masked, rejected and
    vetoed ids weigh 0; the loss masks are returned as they came, so they still count where Miles
    takes means, and the KL term still sees them, as in our own loss.

    Args:
        args: Miles' arguments, with the keys of its ``mis.yaml``: ``tis_mode``, ``tis_level``,
            ``tis_lower_bound``, ``tis_upper_bound``, ``tis_batch_normalize``, ``use_rs``,
            ``rs_level``, ``rs_lower_bound``, ``rs_upper_bound`` and ``rs_veto_threshold``.
        pg_loss: of every response id on this rank, one sequence after the other.
        train_log_probs: of each sequence by the trainer before the step, on this rank.
        rollout_log_probs: the same by the engine.
        loss_masks: of each whole response.
        total_lengths: ids of each prompt and response.
        response_lengths: ids of each response.
        kwargs: what else Miles says; ``max_seq_lens`` is used.

    Returns:
        The weighted loss (only weighted with ``--use-tis``), the masks, and metrics of every
        id under Miles' names; what is known of a sequence stands at each of its ids.

    Raises:
        ConfigError: a key has a value that this correction does not know.
    """
    section = correction_section(args)
    ranks = _Ranks(args, total_lengths, response_lengths, kwargs.get("max_seq_lens"))
    train = [ranks.whole(values, i) for i, values in enumerate(train_log_probs)]
    rollout = [ranks.whole(values, i) for i, values in enumerate(rollout_log_probs)]
    trained = [mask.bool() for mask in loss_masks]
    flat = {
        "train_logprobs_N": _flat(train, trained),
        "rollout_logprobs_N": _flat(rollout, trained),
        "row_N": _rows(trained),
    }
    weights_N = importance_weights(**flat, section=section)
    found = mismatch_metrics(**flat, weights_N=weights_N, section=section)
    of_rows = {name: values_R[found.place_N] for name, values_R in found.by_row.items()}

    if getattr(args, "use_tis", False):
        pg_loss = pg_loss * ranks.spread(weights_N, trained, like=pg_loss)
    metrics = {
        name: ranks.spread(values_N, trained, like=pg_loss)
        for name, values_N in (found.by_id | of_rows).items()
    }
    return pg_loss, list(loss_masks), metrics


def correction_section(args: Namespace) -> CorrectionSection:
    """The correction that Miles' arguments ask for.

    As in ``mis.yaml``, a lower bound that is not given is 1 / the upper one, and bounds of the
    rejection that are not given are those of the weights. A rejection that masks nothing, or
    just what the mode masks, is none.

    Raises:
        ConfigError: a value is unknown, or the bounds are in no order.
    """
    high = _given(args, "tis_upper_bound", 2.0)
    low = _given(args, "tis_lower_bound", 1.0 / high if high else 0.0)
    values = {
        "mode": getattr(args, "tis_mode", "mask"),
        "level": getattr(args, "tis_level", "token"),
        "low": low,
        "high": high,
        "veto": 0.0,
        "normalize": bool(getattr(args, "tis_batch_normalize", False)),
    }
    if getattr(args, "use_rs", True):
        values["veto"] = _given(args, "rs_veto_threshold", 0.0)
        reject_low = _given(args, "rs_lower_bound", low)
        reject_high = _given(args, "rs_upper_bound", high)
        level = _given(args, "rs_level", values["level"])
        masks_alike = values["mode"] == "mask" and level == values["level"]
        if not (
            (masks_alike and (reject_low, reject_high) == (low, high))
            or (reject_low <= 0 and reject_high >= NO_BOUND)
        ):
            values |= {"reject": level, "reject_low": reject_low, "reject_high": reject_high}
    try:
        return CorrectionSection.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the correction's {where or 'bounds'}: {first['msg']}") from None


class _Ranks:
    """Context parallelism: each rank holds a part of each sequence, where there are several."""

    def __init__(
        self,
        args: Namespace,
        total_lengths: Sequence[int],
        response_lengths: Sequence[int],
        max_seq_lens: Sequence[int] | None,
    ) -> None:
        self._lengths = list(zip(total_lengths, response_lengths, strict=True))
        self._format = getattr(args, "qkv_format", "thd")
        self._max_seq_lens = max_seq_lens
        self._split = getattr(args, "context_parallel_size", 1) > 1

    def whole(self, values: torch.Tensor, index: int) -> torch.Tensor:
        """The whole response of a sequence, gathered from all ranks."""
        return self._through("all_gather_with_cp", values, index)

    def mine(self, values: torch.Tensor, index: int) -> torch.Tensor:
        """This rank's part of a whole response."""
        return self._through("slice_log_prob_with_cp", values, index)

    def spread(
        self, values_N: torch.Tensor, trained: Sequence[torch.Tensor], *, like: torch.Tensor
    ) -> torch.Tensor:
        """Values of the trained ids, laid out as this rank's responses; 0 elsewhere."""
        parts = torch.split(values_N.to(like.dtype), [int(mask.sum()) for mask in trained])
        wholes = (
            torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_scatter(mask, part)
            for mask, part in zip(trained, parts, strict=True)
        )
        return torch.cat([self.mine(whole, i) for i, whole in enumerate(wholes)])

    def _through(self, name: str, values: torch.Tensor, index: int) -> torch.Tensor:
        if not self._split:
            return values
        from miles.backends.training_utils import cp_utils

        function: Callable[..., torch.Tensor] = getattr(cp_utils, name)
        total, response = self._lengths[index]
        longest = None if self._max_seq_lens is None else self._max_seq_lens[index]
        return function(values, total, response, self._format, longest)


def _given(args: Namespace, name: str, otherwise: Any) -> Any:
    value = getattr(args, name, None)
    return otherwise if value is None else value


def _flat(values: Sequence[torch.Tensor], trained: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each[mask] for each, mask in zip(values, trained, strict=True)])


def _rows(trained: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(
        [
            torch.full((int(mask.sum()),), row, device=mask.device, dtype=torch.long)
            for row, mask in enumerate(trained)
        ]
    )
