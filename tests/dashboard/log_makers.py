"""Run logs with given rewards, as the event log would give them."""

from __future__ import annotations

from collections.abc import Sequence

from palestra.dashboard.run_log import EpisodeEntry, GroupEntry, RunLog, StepEntry
from palestra.records import Outcome, Timings

STEP_S = 100.0


def make_episode(
    rollout_id: str,
    *,
    began_s: float = 0.0,
    ended_s: float = 10.0,
    reward: float | None = 1.0,
    outcome: Outcome | None = None,
    instance_id: str = "task",
    timings: Timings | None = None,
    num_retries: int = 0,
    num_turns: int = 3,
) -> EpisodeEntry:
    if outcome is None:
        outcome = {None: Outcome.INFRA_ERROR, 0.0: Outcome.UNSOLVED}.get(reward, Outcome.SOLVED)
    failed = outcome is Outcome.INFRA_ERROR
    return EpisodeEntry(
        rollout_id=rollout_id,
        group_id=rollout_id.rpartition("-")[0],
        instance_id=instance_id,
        outcome=outcome,
        exit_status="SandboxDied" if failed else "Submitted",
        reward=reward,
        error="it died" if failed else None,
        began_s=began_s,
        ended_s=ended_s,
        num_turns=num_turns,
        num_retries=num_retries,
        timings=timings,
    )


def make_group(
    number: int,
    rewards: Sequence[float | None],
    *,
    instance_id: str | None = None,
    kept: bool | None = None,
    drop_reason: str | None = None,
    outcome: Outcome | None = None,
) -> GroupEntry:
    equal = len({r for r in rewards if r is not None}) < 2
    instance_id = instance_id or f"task-{number}"
    return GroupEntry(
        group_id=f"run-{number}",
        instance_id=instance_id,
        task_index=number,
        rewards=tuple(rewards),
        kept=(not equal and drop_reason is None) if kept is None else kept,
        drop_reason=drop_reason or ("all_equal" if equal and not kept else None),
        episodes=tuple(
            make_episode(f"run-{number}-{n}", reward=r, instance_id=instance_id, outcome=outcome)
            for n, r in enumerate(rewards)
        ),
    )


def make_step(number: int, groups: Sequence[GroupEntry], **metrics: float) -> StepEntry:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepEntry(
        step=number,
        version=number,
        trained=any(group.kept for group in groups),
        ended_s=number * STEP_S,
        metrics=named,
        groups=tuple(groups),
    )


def make_log(steps: Sequence[StepEntry], episodes: Sequence[EpisodeEntry] = ()) -> RunLog:
    found = {e.rollout_id: e for e in (*(e for s in steps for e in s.episodes), *episodes)}
    return RunLog(
        steps=tuple(steps), episodes=tuple(sorted(found.values(), key=lambda e: e.ended_s))
    )
