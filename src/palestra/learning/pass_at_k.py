"""How well tasks are solved when each is tried several times; pure functions.

Tries that the infrastructure failed are no tries. Tries at one task are alike, so every
interval here takes the task and not the try as what was drawn.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from palestra.config import reported_ks
from palestra.learning.metrics import Interval, score_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTries:
    """The graded tries at one task.

    Attributes:
        solved: how many solved it.
        graded: how many have a verdict; at least one.
    """

    solved: int
    graded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A share in [0, 1] and its 95 % interval.

    Attributes:
        share: itself.
        interval: what it may be on other tasks of the same kind.
        num_tasks: that it was measured on.
    """

    share: float
    interval: Interval
    num_tasks: int


def tries_by_task(rewards: Iterable[tuple[str, float | None]]) -> tuple[TaskTries, ...]:
    """Sort tries by their task; those without a reward, and tasks without any other, are left out.

    Args:
        rewards: instance id and reward of each try.
    """
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for instance_id, reward in rewards:
        if reward is not None:
            found[instance_id].append(reward == 1.0)
    return tuple(TaskTries(solved=sum(own), graded=len(own)) for own in found.values())


def pass_at_k(tries: Iterable[TaskTries], k: int) -> Measure | None:
    """The chance that at least one of ``k`` tries solves a task, mean over tasks.

    Of a task that ``c`` of ``n`` tries solved it is ``1 - C(n - c, k) / C(n, k)``, which is
    without bias (Chen et al. 2021, arXiv:2107.03374, equation 1). Tasks with fewer than ``k``
    graded tries are left out, since nothing unbiased can be said of them.

    Returns:
        The mean; ``None`` if no task has ``k`` graded tries.

    Raises:
        ValueError: ``k`` is not positive.
    """
    if k < 1:
        raise ValueError(f"pass@{k}")
    counted = [task for task in tries if task.graded >= k]
    chances = [
        1 - math.comb(task.graded - task.solved, k) / math.comb(task.graded, k) for task in counted
    ]
    most = sum(task.graded for task in counted) / k
    return _clustered(chances, [1.0] * len(chances), most=most)


def reported_pass_at_k(tries: Sequence[TaskTries], num_tries: int) -> dict[int, Measure]:
    """Pass@k by k, for every k that is reported of so many tries a task and can be estimated."""
    found = {k: pass_at_k(tries, k) for k in reported_ks(num_tries)}
    return {k: measure for k, measure in found.items() if measure is not None}


def solve_rate(tries: Iterable[TaskTries]) -> Measure | None:
    """Share of the graded tries that solved their task.

    Returns:
        The share; ``None`` if nothing was graded.
    """
    counted = list(tries)
    graded = [float(task.graded) for task in counted]
    return _clustered([float(task.solved) for task in counted], graded, most=math.fsum(graded))


def _clustered(sums: Sequence[float], weights: Sequence[float], *, most: float) -> Measure | None:
    """The ratio of two sums over tasks, with a score interval for clusters.

    It is Wilson's with an effective number of trials: so many independent ones would show the
    variance that is seen between tasks (compared with others by Franco et al. 2019,
    PMC6690503). With one try a task it is Wilson's own; at shares of 0 and 1, where no variance
    shows, a task counts as one trial.
    """
    if not sums:
        return None
    total = math.fsum(weights)
    share = math.fsum(sums) / total
    pairs = zip(sums, weights, strict=True)
    variance = math.fsum((own - share * weight) ** 2 for own, weight in pairs) / total**2
    num_trials = float(len(sums))
    if 0 < share < 1:
        num_trials = min(most, share * (1 - share) / variance) if variance else most
    return Measure(share=share, interval=score_interval(share, num_trials), num_tasks=len(sums))
