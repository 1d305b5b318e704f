"""Numbers about episodes, under the names that Miles logs; pure functions.

A value that no episode reported is left out, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from palestra.learning.rollouts.batch import StepBatch
from palestra.records import EpisodeResult, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval of a share, both ends in [0, 1]."""

    low: float
    high: float


def wilson_interval(num_successes: int, num_trials: int) -> Interval | None:
    """The 95 % score interval of a binomial share (Wilson 1927).

    Returns:
        The interval; ``None`` without trials.

    Raises:
        ValueError: the counts are impossible.
    """
    if not 0 <= num_successes <= num_trials:
        raise ValueError(f"{num_successes} successes in {num_trials} trials")
    return score_interval(num_successes / num_trials, num_trials) if num_trials else None


def score_interval(share: float, num_trials: float, *, z: float = 1.959964) -> Interval:
    """Wilson's interval of a share in [0, 1] worth ``num_trials`` > 0 trials, 95 % by default."""
    spread = z * z / num_trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / num_trials + spread / (4 * num_trials))
    half /= 1 + spread
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half))


def agent_metrics(episodes: Sequence[EpisodeResult]) -> dict[str, float]:
    """Aggregate turns and times over the episodes that the infrastructure did not fail.

    ``overhead_time`` is what is left of the total after queue, model, commands and
    grading. Ratios and times per turn are means over episodes of each episode's own.
    """
    ran = [e for e in episodes if e.outcome is not Outcome.INFRA_ERROR]
    metrics: dict[str, float] = {}
    for name, counts in {
        "turns": [e.num_turns for e in ran],
        "tool_calls": [e.num_tool_calls for e in ran],
    }.items():
        if counts:
            metrics[f"agent/{name}_mean"] = sum(counts) / len(counts)
            metrics[f"agent/{name}_sum"] = float(sum(counts))
    times = [e.timings for e in ran]
    totals = [t.total_s for t in times if t.total_s is not None]
    _put_mean(metrics, "agent/total_time_mean", totals)
    if totals:
        metrics |= {"agent/total_time_max": max(totals), "agent/total_time_min": min(totals)}
    _put_mean(metrics, "agent/agent_run_time_mean", (t.agent_s for t in times))
    _put_mean(metrics, "agent/model_query_time_sum_mean", (t.model_s for t in times))
    _put_mean(metrics, "agent/env_execution_time_sum_mean", (t.env_s for t in times))
    _put_mean(metrics, "agent/eval_time_mean", (t.eval_s for t in times))
    _put_mean(metrics, "agent/overhead_time_mean", map(_overhead_s, ran))
    _put_mean(metrics, "agent/time_per_turn", (_ratio(e.timings.agent_s, e.num_turns) for e in ran))
    _put_mean(
        metrics, "agent/model_query_time_avg", (_ratio(e.timings.model_s, e.num_turns) for e in ran)
    )
    _put_mean(
        metrics,
        "agent/env_execution_time_avg",
        (_ratio(e.timings.env_s, e.num_tool_calls) for e in ran),
    )
    _put_mean(metrics, "agent/model_time_ratio", (_ratio(t.model_s, t.total_s) for t in times))
    _put_mean(metrics, "agent/env_time_ratio", (_ratio(t.env_s, t.total_s) for t in times))
    _put_mean(metrics, "agent/eval_time_ratio", (_ratio(t.eval_s, t.total_s) for t in times))
    return metrics


def outcome_metrics(episodes: Sequence[EpisodeResult]) -> dict[str, float]:
    """Shares of outcomes, mean reward, and the solve rate with its 95 % interval.

    ``outcome/…`` are shares of all episodes; rewards and the solve rate are over those
    that have a reward. ``integrity/…`` counts episodes: tampered ones, those of which a part
    of the patch was refused, and those whose test run was meddled with.
    """
    if not episodes:
        return {}
    counts = {o: sum(e.outcome is o for e in episodes) for o in Outcome}
    metrics = {f"outcome/{o.value}": n / len(episodes) for o, n in counts.items()}
    verdicts = [e.verdict for e in episodes if e.verdict is not None]
    metrics |= {
        "integrity/tampered": float(counts[Outcome.TAMPERED]),
        "integrity/refused": float(sum(bool(v.refused) for v in verdicts)),
        "integrity/forged": float(sum(bool(v.findings) for v in verdicts)),
    }
    rewards = [e.reward for e in episodes if e.reward is not None]
    num_solved = sum(reward == 1.0 for reward in rewards)
    interval = wilson_interval(num_solved, len(rewards))
    if interval is not None:
        metrics |= {
            "reward/mean": sum(rewards) / len(rewards),
            "solve_rate": num_solved / len(rewards),
            "solve_rate_low": interval.low,
            "solve_rate_high": interval.high,
        }
    return metrics


def batch_metrics(batch: StepBatch) -> dict[str, float]:
    """Everything that is known of a step before it is trained on."""
    rollouts = list(batch.rollouts())
    episodes = [rollout.episode for rollout in rollouts]
    metrics = outcome_metrics(episodes) | agent_metrics(episodes)
    metrics |= {
        "rollout/episodes": float(len(rollouts)),
        "rollout/groups_kept": float(len(batch.groups)),
        "rollout/groups_dropped": float(len(batch.dropped)),
        "rollout/wait_s": batch.wait_s,
        "integrity/quarantined": float(batch.num_quarantined),
    }
    for reason, count in batch.drop_reasons.items():
        metrics[f"rollout/dropped_{reason.value}"] = float(count)
    oldest = [g.oldest_version for g in batch.groups]
    lags = [float(batch.version - version) for version in oldest if version is not None]
    _put_mean(metrics, "rollout/off_policy_steps_mean", lags)
    if lags:
        metrics["rollout/off_policy_steps_max"] = max(lags)
    sampled = [sum(len(t.sampled_ids) for t in r.trace.turns) for r in rollouts if r.trace.turns]
    _put_mean(metrics, "rollout/sampled_tokens_mean", sampled)
    if sampled:
        metrics["rollout/sampled_tokens_sum"] = float(sum(sampled))
    return metrics | stage_metrics(episodes)


def stage_metrics(episodes: Iterable[EpisodeResult]) -> dict[str, float]:
    """Seconds by stage, summed over episodes that run at once, so more than the clock shows.

    ``other`` is what is left of the totals: reading diffs, and waiting in between.
    """
    sums: dict[str, float] = {}
    for timings in (episode.timings for episode in episodes):
        stages = {
            "queue": timings.queue_s,
            "start": timings.start_s,
            "model": timings.model_s,
            "commands": timings.env_s,
            "grading": timings.eval_s,
        }
        if timings.total_s is not None:
            stages["other"] = max(0.0, timings.total_s - math.fsum(s or 0 for s in stages.values()))
        for stage, seconds in stages.items():
            if seconds is not None:
                name = f"time/episodes_{stage}_s"
                sums[name] = sums.get(name, 0.0) + seconds
    return sums


def _overhead_s(episode: EpisodeResult) -> float | None:
    t = episode.timings
    if t.total_s is None or t.model_s is None or t.env_s is None or t.eval_s is None:
        return None
    return max(0.0, t.total_s - (t.queue_s or 0.0) - t.model_s - t.env_s - t.eval_s)


def _put_mean(metrics: dict[str, float], name: str, values: Iterable[float | None]) -> None:
    known = [value for value in values if value is not None]
    if known:
        metrics[name] = math.fsum(known) / len(known)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None
