"""Masked importance sampling for Miles' policy loss: our correction behind Miles' hook."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import ValidationError

from palestra.config import CorrectionSection
from palestra.errors import ConfigError
from palestra.learning.training.correction import correction_metrics_by_id, importance_weights


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

    The weights are those of :mod:`palestra.learning.training.correction`. Masked and vetoed
    ids weigh 0; the loss masks are returned as they came, so they still count where Miles
    takes means, and the KL term still sees them, as in our own loss.

    Args:
        args: Miles' arguments, with the keys of its ``mis.yaml``: ``tis_mode``,
            ``tis_level``, ``tis_lower_bound``, ``tis_upper_bound``, ``use_rs`` and
            ``rs_veto_threshold``.
        pg_loss: of every response id on this rank, one sequence after the other.
        train_log_probs: of each sequence by the trainer before the step, on this rank.
        rollout_log_probs: the same by the engine.
        loss_masks: of each whole response.
        total_lengths: ids of each prompt and response.
        response_lengths: ids of each response.
        kwargs: what else Miles says; ``max_seq_lens`` is used.

    Returns:
        The weighted loss (only weighted with ``--use-tis``), the masks, and metrics of every
        id under Miles' names.

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
    metrics_N = correction_metrics_by_id(**flat, weights_N=weights_N, section=section)

    if getattr(args, "use_tis", False):
        pg_loss = pg_loss * ranks.spread(weights_N, trained, like=pg_loss)
    metrics = {
        name: ranks.spread(values_N, trained, like=pg_loss) for name, values_N in metrics_N.items()
    }
    return pg_loss, list(loss_masks), metrics


def correction_section(args: Namespace) -> CorrectionSection:
    """The correction that Miles' arguments ask for.

    Raises:
        ConfigError: a value is unknown, or asks for what this correction does not do.
    """
    mode = getattr(args, "tis_mode", "mask")
    level = getattr(args, "tis_level", "token")
    high = _given(args, "tis_upper_bound", 2.0)
    low = _given(args, "tis_lower_bound", 1.0 / high if high else 0.0)
    veto = _given(args, "rs_veto_threshold", 0.0)
    if getattr(args, "tis_batch_normalize", False):
        raise ConfigError("tis_batch_normalize is not known here", hint="set it to false")
    if getattr(args, "use_rs", True):
        asked = {
            "rs_level": (_given(args, "rs_level", level), level),
            "rs_lower_bound": (_given(args, "rs_lower_bound", low), low),
            "rs_upper_bound": (_given(args, "rs_upper_bound", high), high),
        }
        for key, (value, known) in asked.items():
            if value != known:
                raise ConfigError(f"{key} is {value}; here it must be that of tis, {known}")
    else:
        veto = 0.0
    try:
        return CorrectionSection(mode=mode, level=level, low=low, high=high, veto=veto)
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
