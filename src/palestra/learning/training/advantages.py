"""Group-relative advantages: what a rollout was worth against its siblings.

Shao et al. 2024, *DeepSeekMath* (arXiv:2402.03300), section 4.1 (GRPO);
Liu et al. 2025, *Understanding R1-Zero-Like Training* (arXiv:2503.20783) for the
variant without the division by the deviation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

_EPSILON = 1e-6


def group_advantages(
    rewards_G: Sequence[float | None], *, normalize_std: bool
) -> tuple[float | None, ...]:
    """Return one advantage per rollout of a group: reward minus the group's mean.

    A reward of ``None`` (trouble that is not the policy's) neither moves the baseline
    nor gets an advantage. A group whose known rewards are all equal gets exact zeros,
    and so does a rollout whose siblings are all unknown.

    Args:
        rewards_G: one reward per rollout.
        normalize_std: divide by the sample standard deviation (n - 1) plus 1e-6.

    Raises:
        ValueError: a reward is not a finite number.
    """
    known = [reward for reward in rewards_G if reward is not None]
    if not all(math.isfinite(reward) for reward in known):
        raise ValueError(f"a reward is not a finite number: {list(rewards_G)}")
    # Rounding in the mean must not become a signal once it is divided by 1e-6.
    if not known or min(known) == max(known):
        return tuple(None if reward is None else 0.0 for reward in rewards_G)
    mean = math.fsum(known) / len(known)
    scale = 1.0
    if normalize_std:
        variance = math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1)
        scale = math.sqrt(variance) + _EPSILON
    return tuple(None if reward is None else (reward - mean) / scale for reward in rewards_G)


def shuffled(rewards_G: Sequence[float | None], *, name: str) -> tuple[float | None, ...]:
    """Deal the known rewards of a group out to its rollouts in an order drawn from ``name``.

    Mean and deviation of the group stay as they are and so does who has no reward, but no
    advantage is earned: what a run still gains with this is not due to its rewards.
    """
    known = [reward for reward in rewards_G if reward is not None]
    random.Random(name).shuffle(known)
    dealt = iter(known)
    return tuple(None if reward is None else next(dealt) for reward in rewards_G)
