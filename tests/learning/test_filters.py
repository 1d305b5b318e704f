from __future__ import annotations

import dataclasses

import pytest
from rollout_makers import make_group, make_trace

from palestra.config import RolloutsSection
from palestra.learning.rollouts.filters import DropReason, judge
from palestra.records import Outcome

SOLVED, UNSOLVED, INFRA = Outcome.SOLVED, Outcome.UNSOLVED, Outcome.INFRA_ERROR
SECTION = RolloutsSection()


def test_a_group_with_signal_is_kept_whole() -> None:
    group = make_group([SOLVED, UNSOLVED, Outcome.TAMPERED, Outcome.MALFORMED])
    judged = judge(group, version=0, section=SECTION)
    assert judged.reason is None
    assert judged.kept == group


def test_an_aborted_rollout_drops_itself_only() -> None:
    group = make_group([SOLVED, INFRA, UNSOLVED])
    judged = judge(group, version=0, section=SECTION)
    assert judged.kept is not None
    assert [r.rollout_id for r in judged.kept.rollouts] == ["run-0-0", "run-0-2"]
    assert judged.whole == group


@pytest.mark.parametrize("outcomes", [[SOLVED, INFRA], [INFRA, INFRA]])
def test_without_two_rewards_there_is_no_baseline(outcomes: list[Outcome]) -> None:
    judged = judge(make_group(outcomes), version=0, section=SECTION)
    assert (judged.kept, judged.reason) == (None, DropReason.ABORTED)


def test_equal_rewards_are_dropped_unless_the_recipe_keeps_them() -> None:
    group = make_group([UNSOLVED, INFRA, Outcome.TAMPERED])
    assert judge(group, version=0, section=SECTION).reason is DropReason.ALL_EQUAL
    keeping = RolloutsSection(drop_equal_groups=False)
    assert judge(group, version=0, section=keeping).reason is None


@pytest.mark.parametrize(
    ("oldest", "version", "allowed", "stale"),
    [(3, 3, 0, False), (2, 3, 0, True), (2, 3, 1, False), (1, 4, 2, True), (2, 4, 2, False)],
)
def test_one_token_too_old_makes_a_group_stale(
    oldest: int, version: int, allowed: int, stale: bool
) -> None:
    group = make_group([SOLVED, UNSOLVED], versions=(version, oldest))
    section = RolloutsSection(max_off_policy_steps=allowed)
    judged = judge(group, version=version, section=section)
    assert judged.reason is (DropReason.STALE if stale else None)


def test_an_aborted_rollout_makes_no_group_stale() -> None:
    group = make_group([SOLVED, UNSOLVED, INFRA], versions=(5,))
    old = dataclasses.replace(group.rollouts[2], trace=make_trace((0,)))
    group = dataclasses.replace(group, rollouts=(*group.rollouts[:2], old))
    assert judge(group, version=5, section=SECTION).reason is None


def test_nothing_sampled_is_nothing_to_train_on() -> None:
    group = make_group([SOLVED, UNSOLVED], versions=())
    assert judge(group, version=7, section=SECTION).reason is DropReason.NO_TOKENS


def test_masked_truncated_rollouts_alone_are_nothing_to_train_on() -> None:
    group = make_group([Outcome.TRUNCATED, Outcome.TRUNCATED])
    masked = RolloutsSection(truncated="mask", drop_equal_groups=False)
    kept = RolloutsSection(truncated="keep", drop_equal_groups=False)
    assert judge(group, version=0, section=masked).reason is DropReason.NO_TOKENS
    assert judge(group, version=0, section=kept).reason is None


def test_a_flaky_task_believes_no_sibling() -> None:
    group = make_group([SOLVED, UNSOLVED, Outcome.FLAKY])
    assert judge(group, version=0, section=SECTION).reason is DropReason.FLAKY


def test_a_recipe_may_want_whole_groups() -> None:
    group = make_group([SOLVED, INFRA, UNSOLVED])
    whole = RolloutsSection(aborted="drop_group")
    assert judge(group, version=0, section=whole).reason is DropReason.ABORTED
    assert judge(make_group([SOLVED, UNSOLVED]), version=0, section=whole).reason is None


def test_a_group_of_nothing_but_overlong_conversations_is_dropped() -> None:
    """Each turn of the maker has two ids of context and two sampled ones."""
    group = make_group([SOLVED, UNSOLVED], versions=(0, 0))
    assert judge(group, version=0, section=RolloutsSection(max_row_tokens=8)).reason is None
    short = RolloutsSection(max_row_tokens=7)
    assert judge(group, version=0, section=short).reason is DropReason.OVERLONG
    one_fits = dataclasses.replace(group.rollouts[1], trace=make_trace((0,)))
    group = dataclasses.replace(group, rollouts=(group.rollouts[0], one_fits))
    judged = judge(group, version=0, section=short)
    assert judged.kept == group, "the long one still counts in the baseline"
