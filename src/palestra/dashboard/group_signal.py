"""What the rewards of a group can teach; pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

from palestra.dashboard.run_log import GroupEntry, StepEntry


class GroupKind(StrEnum):
    """What the rewards of a group say; only a mixed one has a signal."""

    ALL_ZERO = "all_zero"
    ALL_ONE = "all_one"
    MIXED = "mixed"
    UNGRADED = "ungraded"  # fewer than two rollouts have a reward


def kind_of(group: GroupEntry) -> GroupKind:
    """What the rewards of a group say."""
    rewards = [reward for reward in group.rewards if reward is not None]
    if len(rewards) < 2:
        return GroupKind.UNGRADED
    if len(set(rewards)) > 1:
        return GroupKind.MIXED
    return GroupKind.ALL_ONE if rewards[0] > 0 else GroupKind.ALL_ZERO


def effective_batch(entry: StepEntry) -> int:
    """Episodes of kept groups whose rewards differ: only those have an advantage."""
    return sum(
        sum(reward is not None for reward in group.rewards)
        for group in entry.groups
        if group.kept and kind_of(group) is GroupKind.MIXED
    )


def masked_share(metrics: Mapping[str, float]) -> float | None:
    """Share of the trained ids that the correction masked; ``None`` if it masks none ever."""
    parts = [
        metrics[name]
        for name in (
            "train/mis_tis_mask_fraction_low",
            "train/mis_tis_mask_fraction_high",
            "train/mis_rs_catastrophic_token_fraction",
        )
        if name in metrics
    ]
    return min(1.0, math.fsum(parts)) if parts else None
