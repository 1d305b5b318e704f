"""Groups → training rows → microbatches of padded or packed tensors.

The shift by one between an id and the position that predicts it happens in
:func:`collate` and :func:`collate_stream` and nowhere else: they list, for each trained
id, the position of its predecessor. What follows works on flat arrays of N trained ids,
so padding and ids that were not sampled cannot leak into a loss.
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
from palestra.learning.training.attention import Segment, Segments
from palestra.learning.training.packing import Pack, plan_packs, plan_streams
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
    """Rows of one forward and backward pass.

    Shapes: P ids that all rows begin with (often none), B rows of T more, padded on the right,
    and N trained ids in row-major order. A packed microbatch has one row, the stream, and
    segments that say which of its ids see each other.
    """

    prefix_P: torch.Tensor
    ids_BT: torch.Tensor
    segments: Segments | None = None
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
    layout: Literal["padded", "packed"] = "padded",
) -> list[Microbatch]:
    """Pack and collate rows, each given with its number in the whole batch.

    Args:
        rows: in an order that keeps groups together.
        max_tokens: ids of one microbatch, with their padding.
        device: where the tensors go.
        share_prefixes: whether the model can go on from a prefix that several rows share.
        layout: rows beside each other with padding, or one behind the other without any.
    """
    if layout == "packed":
        return packed_microbatches(
            rows, max_tokens=max_tokens, device=device, share_prefixes=share_prefixes
        )
    packs = plan_packs(
        [row.path.ids for _, row in rows],
        [row.group_id if share_prefixes else "" for _, row in rows],
        max_tokens=max_tokens,
    )
    return [
        collate([rows[i] for i in pack.rows], num_shared=pack.num_shared, device=device)
        for pack in packs
    ]


def packed_microbatches(
    rows: Sequence[tuple[int, TrainingRow]],
    *,
    max_tokens: int,
    device: torch.device,
    share_prefixes: bool = True,
    rank: int = 0,
    num_ranks: int = 1,
) -> list[Microbatch]:
    """Lay rows one behind the other, and take this rank's share of the microbatches.

    All ranks have equally many microbatches, about equal in ids; each rank must be given all
    rows, in the same order. A microbatch without a row holds one id and trains none.

    Args:
        rows: in an order that keeps groups together, each with its number in the whole batch.
        max_tokens: ids of one microbatch.
        device: where the tensors go.
        share_prefixes: whether rows of a group are laid behind what they begin with.
        rank: whose share.
        num_ranks: how many there are.
    """
    ranks = plan_streams(
        [row.path.ids for _, row in rows],
        [row.group_id if share_prefixes else "" for _, row in rows],
        max_tokens=max_tokens,
        num_ranks=num_ranks,
    )
    return [collate_stream(rows, packs, device=device) for packs in ranks[rank]]


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
    trained = [
        _Trained(
            number=number,
            row=row,
            place=t,
            predictor=t - 1 if t <= num_shared else num_shared + b * width + t - 1 - num_shared,
        )
        for b, (number, row) in enumerate(numbered_rows)
        for t in _trainable_positions(row.path)
    ]
    return _microbatch(rows[0].path.ids[:num_shared], ids_BT, trained, None, device)


def collate_stream(
    numbered_rows: Sequence[tuple[int, TrainingRow]], packs: Sequence[Pack], *, device: torch.device
) -> Microbatch:
    """Lay the rows of packs one behind the other, each pack behind its shared prefix.

    Args:
        numbered_rows: rows that the packs name by their index here.
        packs: of the microbatch; none gives a microbatch of one id that trains nothing.
        device: where the tensors go.
    """
    ids: list[int] = []
    segments: list[Segment] = []
    trained: list[_Trained] = []

    def lay(part: Sequence[int], prefix: Segment | None = None) -> Segment:
        segments.append(Segment(start=len(ids), length=len(part), prefix=prefix))
        ids.extend(part)
        return segments[-1]

    for pack in packs:
        shared = pack.num_shared
        first = numbered_rows[pack.rows[0]][1].path.ids[:shared]
        prefix = lay(first) if shared else None
        for number, row in (numbered_rows[index] for index in pack.rows):
            own = lay(row.path.ids[shared:], prefix)
            for t in _trainable_positions(row.path):
                start = prefix.start if prefix and t <= shared else own.start - shared
                trained.append(_Trained(number=number, row=row, place=t, predictor=start + t - 1))
    if not ids:
        lay([_PADDING_ID])
    stream = Segments.of(tuple(segments), device=device)
    return _microbatch((), [ids], trained, stream, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """A trained id: where it stands in its row, and which of the states predicts it."""

    number: int
    row: TrainingRow
    place: int
    predictor: int


def _microbatch(
    prefix: Sequence[int],
    ids_BT: Sequence[Sequence[int]],
    trained: Sequence[_Trained],
    segments: Segments | None,
    device: torch.device,
) -> Microbatch:
    def floats(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=device)

    def integers(values: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device)

    return Microbatch(
        prefix_P=integers(prefix),
        ids_BT=torch.tensor(ids_BT, dtype=torch.int64, device=device),
        segments=segments,
        predictor_N=integers(one.predictor for one in trained),
        target_ids_N=integers(one.row.path.ids[one.place] for one in trained),
        temperatures_N=floats(_scale(one.row.path.temperatures[one.place]) for one in trained),
        rollout_logprobs_N=floats(one.row.path.logprobs[one.place] for one in trained),
        advantages_N=floats(one.row.advantage for one in trained),
        row_N=integers(one.number for one in trained),
        version_N=integers(one.row.path.versions[one.place] for one in trained),
    )


def _trainable_positions(path: TokenPath) -> list[int]:
    return [t for t, trainable in enumerate(path.trainable) if trainable]


def _scale(temperature: float) -> float:
    # Greedy turns report their logprobs at temperature 1 (records.SamplingParams).
    return temperature if temperature > 0 else 1.0
