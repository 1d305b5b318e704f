"""Advantages: what a rollout was worth against its siblings, and what its length costs it.

============== ==================================================================================
``group_mean`` reward less the group's mean (Liu et al. 2025, *Understanding R1-Zero-Like
               Training*, arXiv:2503.20783: Dr. GRPO)
``group_std``  divided by the group's deviation (Shao et al. 2024, *DeepSeekMath*,
               arXiv:2402.03300, section 4.1: GRPO)
``batch_std``  less the group's mean, then whitened over the ids of the batch (Hu et al. 2025,
               *REINFORCE++*, arXiv:2501.03262: REINFORCE++ baseline)
``leave_one_out`` reward less the mean of the others (Kool et al. 2019; Ahmadian et al. 2024,
               *Back to Basics*, arXiv:2402.14740: RLOO)
============== ==================================================================================
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from palestra.config_training import AdvantageName, OverlongSection

_EPSILON = 1e-6


def group_advantages(
    rewards_G: Sequence[float | None], *, estimator: AdvantageName
) -> tuple[float | None, ...]:
    """Return one advantage per rollout of a group.

    A reward of ``None`` (trouble that is not the policy's) neither moves the baseline
    nor gets an advantage. A group whose known rewards are all equal gets exact zeros,
    and so does a rollout whose siblings are all unknown.

    Args:
        rewards_G: one reward per rollout.
        estimator: ``group_std`` divides by the sample standard deviation (n - 1) plus 1e-6;
            ``batch_std`` is as ``group_mean`` here, the rest of it is :func:`whitened`.

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
    if estimator == "group_std":
        variance = math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1)
        scale = math.sqrt(variance) + _EPSILON
    elif estimator == "leave_one_out":
        # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
        scale = (len(known) - 1) / len(known)
    return tuple(None if reward is None else (reward - mean) / scale for reward in rewards_G)


def whitened(advantages_R: Sequence[float], num_ids_R: Sequence[int]) -> tuple[float, ...]:
    """Shift and scale the advantages of a batch to mean 0 and deviation 1 over its trained ids.

    The second half of ``batch_std``. The deviation is the sample's (n - 1) over ids, plus 1e-6.
    Equal advantages become exact zeros.

    Args:
        advantages_R: of each row.
        num_ids_R: trained ids of each row, at least one.
    """
    if not advantages_R or min(advantages_R) == max(advantages_R):
        return (0.0,) * len(advantages_R)
    num_ids = sum(num_ids_R)
    weighted = list(zip(advantages_R, num_ids_R, strict=True))
    mean = math.fsum(advantage * count for advantage, count in weighted) / num_ids
    squares = math.fsum(count * (advantage - mean) ** 2 for advantage, count in weighted)
    scale = math.sqrt(squares / (num_ids - 1)) + _EPSILON
    return tuple((advantage - mean) / scale for advantage in advantages_R)


def overlong_penalty(num_sampled: int, section: OverlongSection) -> float:
    """What a rollout's length adds to its reward, at most 0.

    Nothing up to ``max_tokens - buffer`` sampled ids, ``-penalty`` from ``max_tokens`` on, and
    linear in between: Yu et al. 2025, *DAPO* (arXiv:2503.14476), equation 13.
    """
    over = num_sampled - (section.max_tokens - section.buffer)
    if not section.max_tokens or over <= 0:
        return 0.0
    return -section.penalty * (min(1.0, over / section.buffer) if section.buffer else 1.0)


def shuffled(rewards_G: Sequence[float | None], *, name: str) -> tuple[float | None, ...]:
    """Deal the known rewards of a group out to its rollouts in an order drawn from ``name``.

    Mean and deviation of the group stay as they are and so does who has no reward, but no
    advantage is earned: what a run still gains with this is not due to its rewards.
    """
    known = [reward for reward in rewards_G if reward is not None]
    random.Random(name).shuffle(known)
    dealt = iter(known)
    return tuple(None if reward is None else next(dealt) for reward in rewards_G)
