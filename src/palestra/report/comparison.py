"""Held out before and after: rates, intervals, and which tasks changed; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from palestra.config import EvaluationMode
from palestra.learning.evaluations import EvaluatedEpisode, Evaluation
from palestra.learning.metrics import Interval
from palestra.learning.pass_at_k import Measure, solve_rate
from palestra.records import Outcome

MODES: tuple[EvaluationMode, ...] = ("sampled", "greedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One evaluation in numbers.

    Attributes:
        evaluation: itself.
        num_graded: episodes with a verdict; the rate is over them.
        rate: share solved, from 0 to 1; ``None`` if nothing was graded.
        interval: 95 % of the rate, by task; ``None`` if nothing was graded.
        pass_at: pass@k by k; nothing where each task was attempted once.
        num_failed: episodes that the infrastructure failed, which count for nothing.
    """

    evaluation: Evaluation
    num_graded: int
    rate: float | None
    interval: Interval | None
    pass_at: Mapping[int, Measure]
    num_failed: int

    @property
    def step(self) -> int:
        """After which it was measured."""
        return self.evaluation.plan.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """The same attempts at the same tasks, before and after."""

    both: int
    gained: int
    lost: int
    neither: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One mode before training and after it.

    Attributes:
        mode: sampled or greedy.
        before: the evaluation before the first step; ``None``: there is none.
        after: the newest one after a step; ``None``: there is none.
        all_of_mode: every evaluation of the mode, by step.
    """

    mode: EvaluationMode
    before: Measured | None
    after: Measured | None
    all_of_mode: tuple[Measured, ...]

    @property
    def is_like_with_like(self) -> bool:
        """Whether both were measured on the same tasks in the same way."""
        if self.before is None or self.after is None:
            return False
        first, last = self.before.evaluation.plan, self.after.evaluation.plan
        return (first.tasks, first.temperature) == (last.tasks, last.temperature)

    @property
    def is_separate(self) -> bool | None:
        """Whether the two 95 % intervals have no value in common; ``None`` without two."""
        if self.before is None or self.after is None:
            return None
        one, other = self.before.interval, self.after.interval
        if one is None or other is None:
            return None
        return one.high < other.low or other.high < one.low

    @property
    def flips(self) -> Flips | None:
        """What became of each attempt; ``None`` unless like is compared with like."""
        if not self.is_like_with_like or self.before is None or self.after is None:
            return None
        pairs = [
            (b.rollout.reward == 1.0, a.rollout.reward == 1.0)
            for b, a in paired(self.before.evaluation, self.after.evaluation)
            if b.rollout.reward is not None and a.rollout.reward is not None
        ]
        return Flips(
            both=pairs.count((True, True)),
            gained=pairs.count((False, True)),
            lost=pairs.count((True, False)),
            neither=pairs.count((False, False)),
        )


def compare(evaluations: Iterable[Evaluation]) -> tuple[Comparison, ...]:
    """One comparison for each mode that was evaluated at all."""
    measured = [measure(evaluation) for evaluation in evaluations]
    comparisons = []
    for mode in MODES:
        own = tuple(m for m in measured if m.evaluation.plan.mode == mode)
        later = [m for m in own if m.step > 0]
        if own:
            comparisons.append(
                Comparison(
                    mode=mode,
                    before=own[0] if own[0].step == 0 else None,
                    after=later[-1] if later else None,
                    all_of_mode=own,
                )
            )
    return tuple(comparisons)


def measure(evaluation: Evaluation) -> Measured:
    """Count an evaluation."""
    rewards = [episode.rollout.reward for episode in evaluation.episodes]
    graded = [reward for reward in rewards if reward is not None]
    rate = solve_rate(evaluation.tries)
    return Measured(
        evaluation=evaluation,
        num_graded=len(graded),
        rate=rate.share if rate is not None else None,
        interval=rate.interval if rate is not None else None,
        pass_at=evaluation.pass_at(),
        num_failed=len(rewards) - len(graded),
    )


def paired(
    before: Evaluation, after: Evaluation
) -> list[tuple[EvaluatedEpisode, EvaluatedEpisode]]:
    """The attempts that both evaluations made, in the order of the first."""
    later = {_key(episode): episode for episode in after.episodes}
    return [(b, later[_key(b)]) for b in before.episodes if _key(b) in later]


def outcome_counts(episodes: Sequence[EvaluatedEpisode]) -> tuple[tuple[Outcome, int], ...]:
    """How many episodes ended in each way; ways that none took are left out."""
    ends = [episode.rollout.episode.outcome for episode in episodes]
    return tuple((outcome, ends.count(outcome)) for outcome in Outcome if outcome in ends)


def _key(episode: EvaluatedEpisode) -> tuple[str, int]:
    return episode.rollout.episode.instance_id, episode.attempt
