"""Why the reward of a run is flat: what its groups taught, and which tasks changed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from palestra.config import Recipe
from palestra.dashboard.flat_verdict import Finding, find_causes
from palestra.dashboard.group_signal import GroupKind, effective_batch, kind_of, masked_share
from palestra.dashboard.run_log import GroupEntry, RunLog, StepEntry
from palestra.records import Outcome

K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatStep:
    """What one step had to learn from.

    Attributes:
        step: its number.
        groups: how many there were of each kind; kinds that did not come are left out.
        drops: how many groups each filter dropped; ones that dropped none are left out.
        num_groups: that it used up.
        num_kept: groups that were trained on.
        num_episodes: that it used up.
        effective_batch: episodes of kept groups whose rewards differ: the ones that
            move the weights.
        num_tampered: episodes.
        num_infra_errors: episodes.
        solve_rate: of the graded episodes; ``None`` when none was graded.
        masked_share: of the trained ids that the correction masked; ``None`` if unsaid.
        lr: learning rate; ``None`` if unsaid.
        weight_change: root mean square of the weights' change over that of the weights;
            ``None`` if unsaid.
    """

    step: int
    groups: Mapping[GroupKind, int]
    drops: Mapping[str, int]
    num_groups: int
    num_kept: int
    num_episodes: int
    effective_batch: int
    num_tampered: int
    num_infra_errors: int
    solve_rate: float | None
    masked_share: float | None
    lr: float | None
    weight_change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTrends:
    """Tasks by how their attempts went; ids in alphabetical order.

    ``newly_solved`` and ``forgotten`` compare the first group of a task with its last one;
    so they need two groups, and a task can be in no list.

    Attributes:
        never: no attempt solved it.
        always: every attempt solved it.
        newly_solved: not solved in its first group, solved in its last.
        forgotten: solved in its first group, not in its last.
        num_seen: tasks with at least one graded attempt.
        num_seen_twice: tasks with at least two groups.
    """

    never: tuple[str, ...]
    always: tuple[str, ...]
    newly_solved: tuple[str, ...]
    forgotten: tuple[str, ...]
    num_seen: int
    num_seen_twice: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatReport:
    """What a run, or one step of it, had to learn from.

    Attributes:
        steps: in order.
        groups: of all steps, by kind.
        drops: of all steps, by filter.
        drop_shares: the same over all groups, in [0, 1].
        effective_batch: mean over the steps, in episodes.
        planned_batch: episodes that a step of the recipe trains on at most.
        tasks: how they went.
        num_tampered: episodes.
        num_infra_errors: episodes.
        num_episodes: of all steps.
        errors: what the infrastructure said, and how often; most often first.
        findings: causes that hold, the gravest first; the first is the verdict.
    """

    steps: tuple[FlatStep, ...]
    groups: Mapping[GroupKind, int]
    drops: Mapping[str, int]
    drop_shares: Mapping[str, float]
    effective_batch: float
    planned_batch: int
    tasks: TaskTrends
    num_tampered: int
    num_infra_errors: int
    num_episodes: int
    errors: tuple[tuple[str, int], ...]
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """One sentence."""
        return self.findings[0].sentence


def why_flat(log: RunLog, recipe: Recipe, *, step: int | None = None) -> FlatReport:
    """Say what a run had to learn from, and why it did not, if it did not.

    Args:
        log: of the run.
        recipe: of the run.
        step: of this step alone; tasks then are those of its groups.
    """
    entries = [entry for entry in log.steps if step is None or entry.step == step]
    steps = tuple(map(_flat_step, entries))
    groups = _summed(s.groups for s in steps)
    drops = _summed(s.drops for s in steps)
    num_groups = sum(s.num_groups for s in steps)
    return FlatReport(
        steps=steps,
        groups=groups,
        drops=drops,
        drop_shares={reason: n / num_groups for reason, n in drops.items()},
        effective_batch=_mean([float(s.effective_batch) for s in steps]) or 0.0,
        planned_batch=recipe.rollouts.groups_per_step * recipe.rollouts.group_size,
        tasks=task_trends(group for entry in entries for group in entry.groups),
        num_tampered=sum(s.num_tampered for s in steps),
        num_infra_errors=sum(s.num_infra_errors for s in steps),
        num_episodes=sum(s.num_episodes for s in steps),
        errors=_errors(entries),
        findings=find_causes(entries, recipe),
    )


def task_trends(groups: Iterable[GroupEntry]) -> TaskTrends:
    """Sort tasks by how the attempts at them went, in the order of the groups."""
    seen: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for group in groups:
        rewards = tuple(reward for reward in group.rewards if reward is not None)
        if rewards:
            seen[group.instance_id].append(rewards)
    repeated = {name: tries for name, tries in seen.items() if len(tries) > 1}
    first = {name: max(tries[0]) > 0 for name, tries in repeated.items()}
    last = {name: max(tries[-1]) > 0 for name, tries in repeated.items()}
    return TaskTrends(
        never=_named(n for n, tries in seen.items() if max(map(max, tries)) <= 0),
        always=_named(n for n, tries in seen.items() if min(map(min, tries)) > 0),
        newly_solved=_named(n for n in repeated if last[n] and not first[n]),
        forgotten=_named(n for n in repeated if first[n] and not last[n]),
        num_seen=len(seen),
        num_seen_twice=len(repeated),
    )


def _flat_step(entry: StepEntry) -> FlatStep:
    kinds = Counter(map(kind_of, entry.groups))
    drops = Counter(group.drop_reason for group in entry.groups if group.drop_reason is not None)
    outcomes = Counter(episode.outcome for episode in entry.episodes)
    return FlatStep(
        step=entry.step,
        groups=dict(kinds),
        drops=dict(drops),
        num_groups=len(entry.groups),
        num_kept=sum(group.kept for group in entry.groups),
        num_episodes=sum(len(group.rewards) for group in entry.groups),
        effective_batch=effective_batch(entry),
        num_tampered=outcomes[Outcome.TAMPERED],
        num_infra_errors=outcomes[Outcome.INFRA_ERROR],
        solve_rate=_mean([r for g in entry.groups for r in g.rewards if r is not None]),
        masked_share=masked_share(entry.metrics),
        lr=entry.metrics.get("train/lr"),
        weight_change=entry.metrics.get("train/weight_change"),
    )


def _errors(entries: Sequence[StepEntry]) -> tuple[tuple[str, int], ...]:
    counts = Counter(
        episode.exit_status
        for entry in entries
        for episode in entry.episodes
        if episode.outcome is Outcome.INFRA_ERROR
    )
    return tuple(counts.most_common())


def _summed(counts: Iterable[Mapping[K, int]]) -> dict[K, int]:
    total: Counter[K] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _named(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
