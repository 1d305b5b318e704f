"""Which groups are trained on, and why the others are not; pure functions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from palestra.config import RolloutsSection
from palestra.learning.rollouts.flakes import flaky_tests
from palestra.records import Group, Outcome, Rollout


class DropReason(StrEnum):
    """Why a group is not trained on."""

    FLAKY = "flaky"  # the task is in quarantine: no reward of its tests can be believed
    ABORTED = "aborted"  # too few rollouts have a reward: no baseline, or not a whole one
    STALE = "stale"  # a token was sampled by weights that are too old
    NO_TOKENS = "no_tokens"  # nothing was sampled that the loss would see
    OVERLONG = "overlong"  # all that was sampled is in conversations that are too long
    ALL_EQUAL = "all_equal"  # every reward is the same: no signal


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedGroup:
    """A group as it came out, and what training does with it.

    Attributes:
        whole: with all its rollouts, aborted ones too.
        kept: with its usable rollouts only; ``None`` when the group is dropped.
        reason: why it is dropped; ``None`` when it is kept.
        flaky_tests: tests of the task that did not repeat in this group.
    """

    whole: Group
    kept: Group | None
    reason: DropReason | None
    flaky_tests: tuple[str, ...] = ()

    def as_flaky(self) -> JudgedGroup:
        """The same, dropped because its task is in quarantine."""
        return dataclasses.replace(self, kept=None, reason=DropReason.FLAKY)


def judge(group: Group, *, version: int, section: RolloutsSection) -> JudgedGroup:
    """Decide whether a group is trained on under the weights ``version``.

    A rollout without a reward drops itself only, unless the recipe wants whole groups; the
    baseline comes from the others. Rewards are compared as the environment gave them, before a
    penalty for length (dynamic sampling: Yu et al. 2025, *DAPO*, arXiv:2503.14476, equation 11).
    """
    usable = dataclasses.replace(
        group, rollouts=tuple(r for r in group.rollouts if r.reward is not None)
    )
    flaky = flaky_tests(group)
    reason = DropReason.FLAKY if flaky else _drop_reason(group, usable, version, section)
    return JudgedGroup(
        whole=group, kept=usable if reason is None else None, reason=reason, flaky_tests=flaky
    )


def _drop_reason(
    group: Group, usable: Group, version: int, section: RolloutsSection
) -> DropReason | None:
    if any(r.episode.outcome is Outcome.FLAKY for r in group.rollouts):
        return DropReason.FLAKY
    wanted = len(group.rollouts) if section.aborted == "drop_group" else 2
    if len(usable.rollouts) < max(2, wanted):
        return DropReason.ABORTED
    if is_stale(usable, version=version, max_off_policy_steps=section.max_off_policy_steps):
        return DropReason.STALE
    trained_on = [rollout for rollout in usable.rollouts if _is_trained_on(rollout, section)]
    if not trained_on:
        return DropReason.NO_TOKENS
    if all(is_overlong(rollout, section.max_row_tokens) for rollout in trained_on):
        return DropReason.OVERLONG
    if section.drop_equal_groups and len({r.reward for r in usable.rollouts}) == 1:
        return DropReason.ALL_EQUAL
    return None


def is_stale(group: Group, *, version: int, max_off_policy_steps: int) -> bool:
    """Whether any token of a group is too old to be trained on under ``version``."""
    oldest = group.oldest_version
    return oldest is not None and oldest < version - max_off_policy_steps


def is_overlong(rollout: Rollout, max_row_tokens: int) -> bool:
    """Whether a path of the rollout has more ids than that; 0 allows any number."""
    paths = rollout.trace.paths() if max_row_tokens else ()
    return any(len(path.ids) > max_row_tokens for path in paths)


def _is_trained_on(rollout: Rollout, section: RolloutsSection) -> bool:
    if section.truncated == "mask" and rollout.episode.outcome is Outcome.TRUNCATED:
        return False
    return any(turn.sampled_ids for turn in rollout.trace.turns)
