from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from log_makers import make_group, make_log, make_step

from palestra.config import Recipe
from palestra.dashboard.flat import FlatReport, task_trends, why_flat
from palestra.dashboard.flat_verdict import Cause, dispersion
from palestra.dashboard.group_signal import GroupKind
from palestra.records import Outcome

MOVING = {"train__weight_change": 1e-3, "train__lr": 1e-4}
Rewards = Callable[[int, random.Random], Sequence[float | None]]


def flips(rate: float, draw: random.Random, size: int = 4) -> list[float]:
    return [float(draw.random() < rate) for _ in range(size)]


def run_of(
    rewards: Rewards,
    *,
    num_steps: int = 15,
    metrics: dict[str, float] | None = None,
    **group: object,
) -> FlatReport:
    """Five groups a step; ``rewards`` says what those of a step get."""
    draw = random.Random(0)
    steps = [
        make_step(
            number,
            [make_group(5 * number + n, rewards(number, draw), **group) for n in range(5)],  # type: ignore[arg-type]
            **(MOVING if metrics is None else metrics),
        )
        for number in range(1, num_steps + 1)
    ]
    return why_flat(make_log(steps), Recipe())


def task_like(draw: random.Random, base: float = 0.0) -> list[float]:
    """Tasks differ: some are mostly solved, others hardly ever."""
    return flips(min(1.0, draw.choice((0.15, 0.85)) + base), draw)


def test_tasks_that_nobody_solves_are_too_hard() -> None:
    report = run_of(lambda _, draw: [0.0] * 4 if draw.random() < 0.9 else [0.0, 1.0, 0.0, 0.0])
    assert report.findings[0].cause is Cause.TOO_HARD
    assert "too hard" in report.verdict
    assert "tasks.train" in (report.findings[0].change or "")


def test_tasks_that_everybody_solves_are_too_easy() -> None:
    report = run_of(lambda _, draw: [1.0] * 4)
    assert [finding.cause for finding in report.findings] == [Cause.TOO_EASY]
    assert report.effective_batch == 0.0


def test_weights_that_stand_are_named_before_hard_tasks() -> None:
    still = {"train__weight_change": 0.0, "train__lr": 1e-30, "train__no_signal": 0.0}
    report = run_of(lambda _, draw: task_like(draw), metrics=still)
    assert report.findings[0].cause is Cause.NOT_MOVING
    assert "training.lr" in (report.findings[0].change or "")
    hard = run_of(
        lambda _, draw: [0.0] * 4 if draw.random() < 0.85 else [0.0, 1.0, 0.0, 0.0], metrics=still
    )
    assert [f.cause for f in hard.findings] == [Cause.NOT_MOVING, Cause.TOO_HARD]


def test_steps_without_a_signal_do_not_accuse_the_learning_rate() -> None:
    no_signal = {"train__lr": 1e-4, "train__no_signal": 1.0}
    report = run_of(lambda _, draw: [0.0] * 4, metrics=no_signal)
    assert [finding.cause for finding in report.findings] == [Cause.TOO_HARD]


def test_rewards_that_are_coin_flips_are_unrelated() -> None:
    report = run_of(lambda _, draw: flips(0.4, draw, size=8), num_steps=30)
    assert report.findings[0].cause is Cause.UNRELATED
    assert "coin" in report.verdict


def test_shuffled_rewards_are_unrelated() -> None:
    draw = random.Random(1)
    steps = [make_step(n, [make_group(n, task_like(draw))], **MOVING) for n in range(1, 4)]
    recipe = Recipe.model_validate({"training": {"shuffle_rewards": True}})
    report = why_flat(make_log(steps), recipe)
    assert report.findings[0].cause is Cause.UNRELATED
    assert "shuffle_rewards" in report.verdict


def test_everything_masked_is_lost() -> None:
    masked = MOVING | {
        "train__mis_tis_mask_fraction_low": 0.5,
        "train__mis_tis_mask_fraction_high": 0.45,
    }
    report = run_of(lambda _, draw: task_like(draw), metrics=masked)
    assert report.findings[0].cause is Cause.LOST
    assert "95.0 %" in report.verdict


def test_everything_dropped_is_lost() -> None:
    report = run_of(lambda _, draw: [0.0, 1.0], drop_reason="stale", kept=False)
    assert report.findings[0].cause is Cause.LOST
    assert "stale" in report.verdict
    assert report.drop_shares == {"stale": 1.0}
    assert "max_off_policy_steps" in (report.findings[0].change or "")


def test_trouble_goes_before_everything() -> None:
    report = run_of(lambda _, draw: [None, None, None, 0.0])
    assert report.findings[0].cause is Cause.TROUBLE
    assert report.num_infra_errors == 15 * 5 * 3
    assert report.errors == (("SandboxDied", 225),)
    assert report.groups == {GroupKind.UNGRADED: 75}


def test_tampering_is_named() -> None:
    report = run_of(lambda _, draw: [0.0] * 4, outcome=Outcome.TAMPERED)
    assert {f.cause for f in report.findings} == {Cause.TOO_HARD, Cause.TAMPERED}
    assert report.num_tampered == 300


def test_a_reward_that_rises_is_not_flat() -> None:
    report = run_of(lambda step, draw: task_like(draw, base=0.05 * step - 0.1))
    assert [finding.cause for finding in report.findings] == [Cause.RISING]


def test_signal_and_movement_without_effect() -> None:
    report = run_of(lambda _, draw: task_like(draw), num_steps=30)
    assert [finding.cause for finding in report.findings] == [Cause.NO_EFFECT]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 4])
def test_few_steps_say_little(num_steps: int) -> None:
    report = run_of(lambda _, draw: [0.0, 1.0, 0.0, 1.0], num_steps=num_steps)
    assert [finding.cause for finding in report.findings] == [Cause.TOO_EARLY]


def test_the_numbers_of_a_step_by_hand() -> None:
    groups = [
        make_group(0, [0.0, 0.0, 0.0]),
        make_group(1, [1.0, 1.0, None]),
        make_group(2, [1.0, 0.0, None]),
        make_group(3, [None, None, 1.0]),
        make_group(4, [1.0, 0.0, 0.0], drop_reason="stale"),
    ]
    (step,) = why_flat(make_log([make_step(1, groups)]), Recipe()).steps
    assert step.groups == {
        GroupKind.ALL_ZERO: 1,
        GroupKind.ALL_ONE: 1,
        GroupKind.MIXED: 2,
        GroupKind.UNGRADED: 1,
    }
    assert step.drops == {"all_equal": 3, "stale": 1}
    assert step.effective_batch == 2, "two graded rollouts of the one mixed group that was kept"
    assert step.num_episodes == 15
    assert step.num_infra_errors == 4
    assert step.solve_rate == pytest.approx(5 / 11)
    assert step.masked_share is None


def test_tasks_by_how_they_went() -> None:
    tries = {
        "never": [[0.0, 0.0], [0.0, 0.0]],
        "always": [[1.0, 1.0]],
        "learnt": [[0.0, 0.0], [0.0, 1.0]],
        "forgotten": [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]],
        "mixed": [[1.0, 0.0], [1.0, 0.0]],
        "ungraded": [[None, None]],
        "once": [[0.0, 1.0]],
    }
    groups = [
        make_group(n, rewards, instance_id=name)
        for name, all_rewards in tries.items()
        for n, rewards in enumerate(all_rewards)
    ]
    trends = task_trends(groups)
    assert trends.never == ("never",)
    assert trends.always == ("always",)
    assert trends.newly_solved == ("learnt",)
    assert trends.forgotten == ("forgotten",)
    assert (trends.num_seen, trends.num_seen_twice) == (6, 4)


def test_dispersion_by_hand() -> None:
    # Rate 1/2: a group of four at 4 or 0 lies (4 - 2)^2 / (4 * 1/4) = 4 off, at 2 it lies 0 off.
    wide = [make_group(n, [float(n % 2)] * 4) for n in range(20)]
    narrow = [make_group(n, [0.0, 1.0, 0.0, 1.0]) for n in range(20)]
    assert dispersion(wide) == pytest.approx(20 * 4 / 19)
    assert dispersion(narrow) == 0.0
    assert dispersion(wide[:10]) is None, "too few"
    assert dispersion([make_group(n, [0.0] * 4) for n in range(30)]) is None
