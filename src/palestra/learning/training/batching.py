"""Groups → training rows → microbatches of padded tensors.

The shift by one between an id and the position that predicts it happens in
:func:`collate` and nowhere else: it lists, for each trained id, the position of its
predecessor. What follows works on flat arrays of N trained ids, so padding and ids
that were not sampled cannot leak into a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from palestra.learning.training.advantages import group_advantages
from palestra.records import Group, Outcome, Rollout, TokenPath

_PADDING_ID = 0  # never read: padding stands to the right, where causality hides it


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One path of one rollout with the rollout's advantage; at least one id is trainable."""

    rollout_id: str
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

    Shapes: B rows, T positions, N trained ids in row-major order.
    """

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    predictor_N: torch.Tensor
    """Where in the flattened [B * T] positions each trained id is predicted."""
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
    groups: Iterable[Group], *, normalize_std: bool, truncated: Literal["keep", "mask"]
) -> tuple[TrainingRow, ...]:
    """Turn groups into rows, in the order of groups, rollouts and paths.

    Rollouts without a reward give no row. With ``truncated="mask"`` a truncated rollout
    counts in its group's baseline and gives no row either (Yu et al. 2025, *DAPO*,
    arXiv:2503.14476, section 3.4: overlong filtering).

    Raises:
        ValueError: a reward is not finite, or an id without context claims to be sampled.
    """
    rows: list[TrainingRow] = []
    for group in groups:
        rewards_G = [rollout.reward for rollout in group.rollouts]
        advantages_G = group_advantages(rewards_G, normalize_std=normalize_std)
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True):
            masked = truncated == "mask" and rollout.episode.outcome is Outcome.TRUNCATED
            if advantage is not None and not masked:
                rows.extend(_rows_of(rollout, advantage))
    return tuple(rows)


def _rows_of(rollout: Rollout, advantage: float) -> Iterable[TrainingRow]:
    return (
        TrainingRow(rollout_id=rollout.rollout_id, path=path, advantage=advantage)
        for path in rollout.trace.paths()
        if any(path.trainable)
    )


def pack(lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Cut rows into microbatches of at most ``max_tokens`` padded ids, longest rows first.

    A row that is longer than ``max_tokens`` has a microbatch of its own.

    Returns:
        Indices into ``lengths``, each exactly once.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        # The first row of a microbatch is its longest, so it sets the padded width.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def microbatches(
    rows: Sequence[tuple[int, TrainingRow]], *, max_tokens: int, device: torch.device
) -> list[Microbatch]:
    """Pack and collate rows, each given with its number in the whole batch."""
    packs = pack([row.num_ids for _, row in rows], max_tokens=max_tokens)
    return [collate([rows[i] for i in indices], device=device) for indices in packs]


def collate(
    numbered_rows: Sequence[tuple[int, TrainingRow]], *, device: torch.device
) -> Microbatch:
    """Pad rows and gather what is known of each trained id.

    There is no attention mask: padding follows every real id, so a causal model cannot
    see it, and attention without a mask takes the faster kernels.

    Args:
        numbered_rows: at least one row, each with its number in the whole batch.
        device: where the tensors go.
    """
    rows = [row for _, row in numbered_rows]
    width = max(row.num_ids for row in rows)
    ids_BT = [[*row.path.ids, *[_PADDING_ID] * (width - row.num_ids)] for row in rows]
    # (row in this microbatch, position) of each trained id.
    trained = [(b, t) for b, row in enumerate(rows) for t in _trainable_positions(row.path)]

    def floats(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=device)

    def integers(values: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device)

    return Microbatch(
        ids_BT=torch.tensor(ids_BT, dtype=torch.int64, device=device),
        positions_BT=torch.arange(width, device=device).expand(len(rows), width),
        predictor_N=integers(b * width + t - 1 for b, t in trained),
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
