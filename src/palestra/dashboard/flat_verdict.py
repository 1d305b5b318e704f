"""Which causes of a flat reward hold in a run; pure functions.

A cause is named only where its numbers are in the log. The gravest comes first: while it
holds, mending another changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from palestra.config import Recipe
from palestra.dashboard.group_signal import GroupKind, kind_of, masked_share
from palestra.dashboard.run_log import GroupEntry, StepEntry
from palestra.records import Outcome
from palestra.report.words import number, percent, plural

EQUAL_SHARE = 0.8
"""From this share of groups with equal rewards on, a run has next to no signal."""

LOST_SHARE = 0.8
"""From this share of mixed groups dropped, or of ids masked, the signal is thrown away."""

TROUBLE_SHARE = 0.5
"""From this share of infra errors on, they are what the run is about."""

TAMPERED_SHARE = 0.3
"""From this share of tampered episodes on, they are what the run is about."""

STILL_CHANGE = 1e-5
"""Weights that changed by less than this part of themselves, in all steps together, stand."""

MIN_STEPS = 10
"""With fewer steps that had a signal, a flat reward is no wonder."""

SIGMAS = 2.0
"""A solve rate rises or falls when its ends differ by more standard errors than this."""

MAX_COIN_DISPERSION = 1.25
"""Groups that differ no more than this, in variances of coin flips, look like coin flips."""

MIN_COIN_GROUPS = 20


class Cause(StrEnum):
    """Why a reward does not rise, or that it does."""

    RISING = "rising"
    TROUBLE = "trouble"  # most episodes failed with the infrastructure
    LOST = "lost"  # there is a signal, but it is masked or dropped
    NOT_MOVING = "not_moving"  # the weights stand: learning rate, or no finite gradient
    TOO_HARD = "too_hard"
    TOO_EASY = "too_easy"
    TAMPERED = "tampered"
    UNRELATED = "unrelated"  # rewards do not depend on what the policy does
    NO_EFFECT = "no_effect"  # signal and movement, but the reward stays
    TOO_EARLY = "too_early"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A cause that holds.

    Attributes:
        cause: which.
        sentence: what was seen, with its numbers.
        change: what to do about it: keys of the recipe; ``None`` where nothing is wrong.
    """

    cause: Cause
    sentence: str
    change: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The solve rate at both ends of a run, by groups, which share a task.

    Attributes:
        first: mean of the first third of the steps, in [0, 1].
        last: mean of the last third.
        sigmas: how many standard errors the last lies above the first.
    """

    first: float
    last: float
    sigmas: float


def find_causes(steps: Sequence[StepEntry], recipe: Recipe) -> tuple[Finding, ...]:
    """Name what holds, the gravest first; at least one."""
    if not steps:
        return (Finding(cause=Cause.TOO_EARLY, sentence="no step is complete yet", change=None),)
    trend = trend_of(steps)
    if trend is not None and trend.sigmas > SIGMAS:
        sentence = f"the solve rate rises: {_ends(trend)}"
        return (Finding(cause=Cause.RISING, sentence=sentence, change=None),)
    found = [
        *_trouble(steps),
        *_lost(steps, recipe),
        *_not_moving(steps, recipe),
        *_equal(steps, recipe),
        *_tampered(steps),
        *_unrelated(steps, recipe, trend),
    ]
    return tuple(found) or (_no_effect(steps, recipe, trend),)


def trend_of(steps: Sequence[StepEntry]) -> Trend | None:
    """Compare the first third of the steps with the last; ``None`` below three groups each."""
    third = len(steps) // 3
    first = _group_means(steps[:third])
    last = _group_means(steps[len(steps) - third :])
    if min(len(first), len(last)) < 3:
        return None
    low, high = (math.fsum(means) / len(means) for means in (first, last))
    error = math.sqrt(_squared_error(first, low) + _squared_error(last, high))
    return Trend(first=low, last=high, sigmas=_sigmas(high - low, error))


def dispersion(groups: Sequence[GroupEntry]) -> float | None:
    """Variance of the groups' solve rates in units of what coin flips would give.

    About 1 where every attempt at every task is a flip of the same coin (Pearson's
    chi-square over its degrees of freedom); ``None`` where nothing can be said.
    """
    graded = [rewards for group in groups if len(rewards := _graded(group)) > 1]
    total = sum(map(len, graded))
    if len(graded) < MIN_COIN_GROUPS:
        return None
    rate = sum(map(sum, graded)) / total
    if not 0.05 < rate < 0.95:
        return None
    squares = (
        (sum(rewards) - len(rewards) * rate) ** 2 / (len(rewards) * rate * (1 - rate))
        for rewards in graded
    )
    return math.fsum(squares) / (len(graded) - 1)


def _trouble(steps: Sequence[StepEntry]) -> Iterator[Finding]:
    episodes = [episode for step in steps for episode in step.episodes]
    failed = [e for e in episodes if e.outcome is Outcome.INFRA_ERROR]
    if not episodes or len(failed) < TROUBLE_SHARE * len(episodes):
        return
    (what, count), *_ = Counter(e.exit_status for e in failed).most_common()
    yield Finding(
        cause=Cause.TROUBLE,
        sentence=f"{len(failed)} of {len(episodes)} episodes failed with the infrastructure, "
        f"{count} of them with {what}: they have no reward",
        change=f"mend {what} first; the last said: {failed[-1].error}",
    )


def _lost(steps: Sequence[StepEntry], recipe: Recipe) -> Iterator[Finding]:
    mixed = [g for step in steps for g in step.groups if kind_of(g) is GroupKind.MIXED]
    dropped = Counter(g.drop_reason for g in mixed if g.drop_reason is not None)
    if mixed and dropped.total() >= LOST_SHARE * len(mixed):
        reason = dropped.most_common(1)[0][0]
        yield Finding(
            cause=Cause.LOST,
            sentence=f"{dropped.total()} of {len(mixed)} groups with a signal were dropped, "
            f"most of them as {reason}",
            change=_DROP_CHANGES.get(reason or ""),
        )
    shares = [s for step in steps if (s := masked_share(step.metrics)) is not None]
    if shares and math.fsum(shares) / len(shares) >= LOST_SHARE:
        correction = recipe.training.correction
        yield Finding(
            cause=Cause.LOST,
            sentence=f"the correction masked {percent(math.fsum(shares) / len(shares))} of the ids "
            "that were trained on",
            change=f"training.correction.low and high ({correction.low:g} to "
            f"{correction.high:g}) and veto ({correction.veto:g}) are too narrow, or engine and "
            "trainer disagree: see train/train_rollout_logprob_abs_diff",
        )


_DROP_CHANGES = {
    "stale": "raise rollouts.max_off_policy_steps, or lower rollouts.groups_per_step",
    "aborted": "mend the infrastructure: fewer than two rollouts of a group had a reward",
    "flaky": "the tests of these tasks do not repeat: palestra certify finds them",
    "no_tokens": 'every rollout is masked: rollouts.truncated = "keep", or a higher '
    "agent.step_limit or sampling.max_new_tokens",
}


def _not_moving(steps: Sequence[StepEntry], recipe: Recipe) -> Iterator[Finding]:
    moved = [s for s in steps if s.trained and s.metrics.get("train/no_signal", 0.0) == 0.0]
    changes = [
        s.metrics["train/weight_change"] for s in moved if "train/weight_change" in s.metrics
    ]
    rates = [s.metrics["train/lr"] for s in moved if "train/lr" in s.metrics]
    stands = bool(changes) and math.fsum(changes) < STILL_CHANGE
    without_rate = bool(rates) and max(rates) == 0.0
    if stands or without_rate:
        seen = f"by {number(math.fsum(changes))} of themselves " if changes else ""
        yield Finding(
            cause=Cause.NOT_MOVING,
            sentence=f"the weights do not move: in {plural(len(moved), 'step')} with a signal they "
            f"changed {seen}in all, at a learning rate of {number(max(rates, default=0.0))} "
            "at most",
            change=f"raise training.lr (it is {number(recipe.training.lr)}); look at "
            "train/grad_norm and train/nonfinite_steps",
        )


def _equal(steps: Sequence[StepEntry], recipe: Recipe) -> Iterator[Finding]:
    kinds = Counter(kind_of(group) for step in steps for group in step.groups)
    zeros, ones = kinds[GroupKind.ALL_ZERO], kinds[GroupKind.ALL_ONE]
    graded = zeros + ones + kinds[GroupKind.MIXED]
    if not graded or zeros + ones < EQUAL_SHARE * graded:
        return
    counts = f"{zeros} of {graded} groups were never solved and {ones} always"
    if zeros >= ones:
        yield Finding(
            cause=Cause.TOO_HARD,
            sentence=f"the tasks are too hard: {counts}",
            change=f"easier tasks in tasks.train ({recipe.tasks.train}), more warmstart.steps "
            f"({recipe.warmstart.steps}), or a larger rollouts.group_size "
            f"({recipe.rollouts.group_size})",
        )
    else:
        yield Finding(
            cause=Cause.TOO_EASY,
            sentence=f"the tasks are too easy: {counts}",
            change=f"harder tasks in tasks.train ({recipe.tasks.train})",
        )


def _tampered(steps: Sequence[StepEntry]) -> Iterator[Finding]:
    episodes = [episode for step in steps for episode in step.episodes]
    tampered = sum(e.outcome is Outcome.TAMPERED for e in episodes)
    if episodes and tampered >= TAMPERED_SHARE * len(episodes):
        yield Finding(
            cause=Cause.TAMPERED,
            sentence=f"{tampered} of {len(episodes)} episodes meddled with their own grading, "
            "which has reward 0",
            change='read some of them (palestra view); grading.on_refused = "drop" grades what '
            "is left of a patch",
        )


def _unrelated(
    steps: Sequence[StepEntry], recipe: Recipe, trend: Trend | None
) -> Iterator[Finding]:
    if recipe.training.shuffle_rewards:
        yield Finding(
            cause=Cause.UNRELATED,
            sentence="the rewards are unrelated to what the policy does: "
            "training.shuffle_rewards deals each group's out at random",
            change="training.shuffle_rewards = false",
        )
        return
    groups = [group for step in steps for group in step.groups]
    spread = dispersion(groups)
    if spread is None or trend is None or len(_with_signal(steps)) < MIN_STEPS:
        return
    if spread <= MAX_COIN_DISPERSION:
        yield Finding(
            cause=Cause.UNRELATED,
            sentence="the rewards look unrelated to task and policy: groups differ no more than "
            f"flips of one coin would (dispersion {spread:.2f}), and the solve rate stays: "
            f"{_ends(trend)}",
            change="grade some patches again (palestra eval --regrade RUN), and read some "
            "solved episodes",
        )


def _no_effect(steps: Sequence[StepEntry], recipe: Recipe, trend: Trend | None) -> Finding:
    num_steps = len(_with_signal(steps))
    ends = "" if trend is None else f": {_ends(trend)}"
    if num_steps < MIN_STEPS:
        return Finding(
            cause=Cause.TOO_EARLY,
            sentence=f"too early to say: {plural(num_steps, 'step')} had a signal{ends}",
            change=None,
        )
    verb = "falls" if trend is not None and trend.sigmas < -SIGMAS else "stays"
    return Finding(
        cause=Cause.NO_EFFECT,
        sentence=f"there is a signal and the weights move, but the solve rate {verb}{ends}",
        change=f"training.lr ({number(recipe.training.lr)}) up for a rate that stays, down for one "
        f"that falls; or more rollouts.groups_per_step ({recipe.rollouts.groups_per_step})",
    )


def _with_signal(steps: Sequence[StepEntry]) -> list[StepEntry]:
    return [
        step
        for step in steps
        if any(group.kept and kind_of(group) is GroupKind.MIXED for group in step.groups)
    ]


def _graded(group: GroupEntry) -> list[float]:
    return [reward for reward in group.rewards if reward is not None]


def _group_means(steps: Sequence[StepEntry]) -> list[float]:
    rewards = [r for step in steps for group in step.groups if (r := _graded(group))]
    return [math.fsum(r) / len(r) for r in rewards]


def _sigmas(gap: float, error: float) -> float:
    if error:
        return gap / error
    return math.copysign(math.inf, gap) if gap else 0.0


def _squared_error(means: Sequence[float], mean: float) -> float:
    variance = math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return variance / len(means)


def _ends(trend: Trend) -> str:
    return (
        f"{percent(trend.first)} in the first third of the steps, {percent(trend.last)} in the last"
    )
