"""Groups → training rows → microbatches of padded tensors.

The shift by one between an id and the position that predicts it happens in
:func:`collate` and nowhere else: it lists, for each trained id, the position of its
predecessor. What follows works on flat arrays of N trained ids, so padding and ids
that were not sampled cannot leak into a loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from palestra.config_training import AdvantageName, OverlongSection
from palestra.learning.rollouts.filters import is_overlong
from palestra.learning.training.advantages import (
    group_advantages,
    overlong_penalty,
    shuffled,
    whitened,
)
from palestra.learning.training.packing import plan_packs
from palestra.records import Group, Outcome, Rollout, TokenPath

_NO_PENALTY = OverlongSection()
_PADDING_ID = 0  # never read: padding stands to the right, where causality hides it


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One path of one rollout with the rollout's advantage; at least one id is trainable.

    Neighbouring rows of one ``group_id`` may share the work on the ids that they begin with.
    """

    rollout_id: str
    group_id: str = ""
    path: TokenPath
    advantage: float

    def __post_init__(self) -> None:
        if not any(self.path.trainable):
            raise ValueError(f"{self.rollout_id}: a training row without a trainable id")
        if self.path.trainable[0]:
            raise ValueError(f"{self.rollout_id}: the first id has no context to be sampled from")

    @property
    def num_ids(self) -> int:
        """Length of the row."""
        return len(self.path.ids)

    @property
    def num_trainable(self) -> int:
        """Ids that the loss sees."""
        return sum(self.path.trainable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """Rows of one forward and backward pass, padded on the right.

    Shapes: P ids that all rows begin with (often none), B rows of T more, N trained ids in
    row-major order.
    """

    prefix_P: torch.Tensor
    ids_BT: torch.Tensor
    predictor_N: torch.Tensor
    """Where each trained id is predicted in the [P + B * T] states, the prefix's first."""
    target_ids_N: torch.Tensor
    temperatures_N: torch.Tensor
    rollout_logprobs_N: torch.Tensor
    advantages_N: torch.Tensor
    row_N: torch.Tensor
    """Which row of the whole batch the id belongs to."""
    version_N: torch.Tensor

    @property
    def num_trainable(self) -> int:
        """Ids that the loss sees (N)."""
        return int(self.target_ids_N.numel())


def training_rows(
    groups: Iterable[Group],
    *,
    advantage: AdvantageName = "group_std",
    truncated: Literal["keep", "mask"] = "keep",
    max_row_tokens: int = 0,
    overlong: OverlongSection = _NO_PENALTY,
    shuffle_seed: int | None = None,
) -> tuple[TrainingRow, ...]:
    """Turn groups into rows, in the order of groups, rollouts and paths.

    Rollouts without a reward give no row.

    Args:
        groups: that share a baseline each.
        advantage: how rewards become advantages.
        truncated: with ``mask`` a truncated rollout counts in its group's baseline and gives no
            row (Yu et al. 2025, *DAPO*, arXiv:2503.14476, section 3.4: overlong filtering).
        max_row_tokens: a rollout with a path of more ids does the same; 0: any length.
        overlong: what the reward loses by the number of sampled ids.
        shuffle_seed: with one, the rewards of a group are dealt out at random (a control).

    Raises:
        ValueError: a reward is not finite, or an id without context claims to be sampled.
    """
    rows: list[TrainingRow] = []
    for group in groups:
        rewards_G: Sequence[float | None] = [_reward(r, overlong) for r in group.rollouts]
        if shuffle_seed is not None:
            rewards_G = shuffled(rewards_G, name=f"{shuffle_seed} {group.group_id}")
        advantages_G = group_advantages(rewards_G, estimator=advantage)
        for rollout, value in zip(group.rollouts, advantages_G, strict=True):
            masked = truncated == "mask" and rollout.episode.outcome is Outcome.TRUNCATED
            if value is not None and not masked:
                rows.extend(_rows_of(group.group_id, rollout, value, max_row_tokens))
    if advantage != "batch_std":
        return tuple(rows)
    values = whitened([row.advantage for row in rows], [row.num_trainable for row in rows])
    return tuple(
        dataclasses.replace(row, advantage=value) for row, value in zip(rows, values, strict=True)
    )


def _reward(rollout: Rollout, overlong: OverlongSection) -> float | None:
    if rollout.reward is None:
        return None
    num_sampled = sum(len(turn.sampled_ids) for turn in rollout.trace.turns)
    return rollout.reward + overlong_penalty(num_sampled, overlong)


def _rows_of(
    group_id: str, rollout: Rollout, advantage: float, max_row_tokens: int
) -> Iterable[TrainingRow]:
    if is_overlong(rollout, max_row_tokens):
        return ()
    return (
        TrainingRow(
            rollout_id=rollout.rollout_id, group_id=group_id, path=path, advantage=advantage
        )
        for path in rollout.trace.paths()
        if any(path.trainable)
    )


def microbatches(
    rows: Sequence[tuple[int, TrainingRow]],
    *,
    max_tokens: int,
    device: torch.device,
    share_prefixes: bool = True,
) -> list[Microbatch]:
    """Pack and collate rows, each given with its number in the whole batch.

    Args:
        rows: in an order that keeps groups together.
        max_tokens: padded ids of one microbatch.
        device: where the tensors go.
        share_prefixes: whether the model can go on from a prefix that several rows share.
    """
    packs = plan_packs(
        [row.path.ids for _, row in rows],
        [row.group_id if share_prefixes else "" for _, row in rows],
        max_tokens=max_tokens,
    )
    return [
        collate([rows[i] for i in pack.rows], num_shared=pack.num_shared, device=device)
        for pack in packs
    ]


def collate(
    numbered_rows: Sequence[tuple[int, TrainingRow]], *, num_shared: int = 0, device: torch.device
) -> Microbatch:
    """Pad rows and gather what is known of each trained id.

    There is no attention mask: padding follows every real id, so a causal model cannot
    see it, and attention without a mask takes the faster kernels.

    Args:
        numbered_rows: at least one row, each with its number in the whole batch.
        num_shared: how many first ids are the same in all rows; fewer than any row has.
        device: where the tensors go.
    """
    rows = [row for _, row in numbered_rows]
    width = max(row.num_ids for row in rows) - num_shared
    ids_BT = [
        [*row.path.ids[num_shared:], *[_PADDING_ID] * (width + num_shared - row.num_ids)]
        for row in rows
    ]
    # (row in this microbatch, position) of each trained id.
    trained = [(b, t) for b, row in enumerate(rows) for t in _trainable_positions(row.path)]

    def predictor(b: int, t: int) -> int:
        return t - 1 if t <= num_shared else num_shared + b * width + t - 1 - num_shared

    def floats(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=device)

    def integers(values: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device)

    return Microbatch(
        prefix_P=integers(rows[0].path.ids[:num_shared]),
        ids_BT=torch.tensor(ids_BT, dtype=torch.int64, device=device),
        predictor_N=integers(predictor(b, t) for b, t in trained),
        target_ids_N=integers(rows[b].path.ids[t] for b, t in trained),
        temperatures_N=floats(_scale(rows[b].path.temperatures[t]) for b, t in trained),
        rollout_logprobs_N=floats(rows[b].path.logprobs[t] for b, t in trained),
        advantages_N=floats(rows[b].advantage for b, _ in trained),
        row_N=integers(numbered_rows[b][0] for b, _ in trained),
        version_N=integers(rows[b].path.versions[t] for b, t in trained),
    )


def _trainable_positions(path: TokenPath) -> list[int]:
    return [t for t, trainable in enumerate(path.trainable) if trainable]


def _scale(temperature: float) -> float:
    # Greedy turns report their logprobs at temperature 1 (records.SamplingParams).
    return temperature if temperature > 0 else 1.0
