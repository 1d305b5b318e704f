"""The hooks that say what a finished sample is worth and whether its group is trained on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from miles.rollout.filter_hub.base_types import DynamicFilterOutput
from miles.utils.types import Sample


async def reward_func(
    args: Namespace, sample: Sample | list[Sample], **kwargs: Any
) -> float | list[float | None] | None:
    """The reward that the environment gave, for one sample or for each of a list.

    ``None`` where there is none, which is no 0: :func:`dynamic_filter` drops the group.
    """
    if isinstance(sample, list):
        return [_reward(each) for each in sample]
    return _reward(sample)


def dynamic_filter(
    args: Namespace, samples: Sequence[Sample | list[Sample]], **kwargs: Any
) -> DynamicFilterOutput:
    """Drop a group with an aborted sample, or one whose rewards are all equal.

    The second can be switched off with ``palestra_drop_equal_groups: false`` and does not
    concern groups of one.
    """
    flat = [each for sample in samples for each in _each(sample)]
    if any(_without_reward(sample) for sample in flat):
        return DynamicFilterOutput(keep=False, reason="group_has_aborted")
    rewards = [float(sample.get_reward_value(args)) for sample in flat]
    if (
        getattr(args, "palestra_drop_equal_groups", True)
        and len(rewards) > 1
        and min(rewards) == max(rewards)
    ):
        return DynamicFilterOutput(keep=False, reason=f"zero_std_{round(rewards[0], 1)}")
    return DynamicFilterOutput(keep=True)


def _each(sample: Sample | list[Sample]) -> list[Sample]:
    return sample if isinstance(sample, list) else [sample]


def _reward(sample: Sample) -> float | None:
    reward = (sample.metadata or {}).get("reward")
    if reward is None:
        # A Miles with its own session server builds its samples before it knows.
        sample.remove_sample = True
    return None if reward is None else float(reward)


def _without_reward(sample: Sample) -> bool:
    return sample.status is Sample.Status.ABORTED or sample.reward is None
