"""The event log of a run, joined into steps, groups and episodes; no file is opened here.

Reading rollouts costs a decompression of all ids; the event log has what can be said of
time and reward without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from palestra.events import Event
from palestra.records import Outcome, Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEntry:
    """One episode as the scheduler saw it.

    Attributes:
        rollout_id: its id.
        group_id: of its group.
        instance_id: of its task.
        outcome: how it ended.
        exit_status: how the agent stopped, or the class of the failure.
        reward: ``None`` where no verdict on the policy exists.
        error: what went wrong, if anything.
        began_s: when it got its place, Unix seconds.
        ended_s: when it had ended, Unix seconds.
        num_turns: model calls.
        num_retries: attempts before the last one, which failed with the infrastructure.
        timings: of the last attempt; ``None`` when nobody reported them.
    """

    rollout_id: str
    group_id: str
    instance_id: str
    outcome: Outcome
    exit_status: str
    reward: float | None
    error: str | None
    began_s: float
    ended_s: float
    num_turns: int
    num_retries: int = 0
    timings: Timings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEntry:
    """One group that a step used up.

    Attributes:
        group_id: its id.
        instance_id: of its task.
        task_index: its place in the order of the tasks.
        rewards: of its rollouts, in order; ``None`` where there is none.
        kept: whether it was trained on.
        drop_reason: why not.
        episodes: of its rollouts, as far as the log tells of them.
    """

    group_id: str
    instance_id: str
    task_index: int
    rewards: tuple[float | None, ...]
    kept: bool
    drop_reason: str | None
    episodes: tuple[EpisodeEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEntry:
    """One complete training step.

    Attributes:
        step: its number, from 1.
        version: of the weights after it.
        trained: whether any group had a signal.
        ended_s: Unix seconds.
        metrics: as it reported them; what it did not report is not in there.
        groups: that it used up, by task index.
    """

    step: int
    version: int
    trained: bool
    ended_s: float
    metrics: Mapping[str, float]
    groups: tuple[GroupEntry, ...] = ()

    @property
    def episodes(self) -> tuple[EpisodeEntry, ...]:
        """Of all its groups."""
        return tuple(episode for group in self.groups for episode in group.episodes)


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """A run up to now.

    Attributes:
        steps: every complete step that still counts, in order.
        episodes: every one that has ended, by the time of its end; also those that no
            step has used up yet.
    """

    steps: tuple[StepEntry, ...]
    episodes: tuple[EpisodeEntry, ...]

    @cached_property
    def ends_s(self) -> tuple[float, ...]:
        """When the episodes ended, Unix seconds."""
        return tuple(episode.ended_s for episode in self.episodes)


class RunLogBuilder:
    """Takes events as they come, so that a live run needs each of them once.

    A run that goes on from a checkpoint does later steps again: those of its former life
    do not count any more.
    """

    def __init__(self) -> None:
        self._steps: dict[int, StepEntry] = {}
        self._episodes: dict[str, EpisodeEntry] = {}
        self._retries: Counter[str] = Counter()
        self._groups: dict[int, list[GroupEntry]] = {}

    def add(self, event: Event) -> None:
        """Take one event; kinds that say nothing here are passed over."""
        fields = event.fields
        try:
            if event.kind == "rollout":
                self._add_episode(event.time_s, fields)
            elif event.kind == "rollout.retry":
                self._retries[fields["rollout_id"]] += 1
            elif event.kind == "group":
                self._groups.setdefault(fields["step"], []).append(_group(fields))
            elif event.kind == "step":
                self._add_step(event.time_s, fields)
            elif event.kind == "loop.started":
                self._go_back_to(fields["step"])
        except (KeyError, TypeError, ValueError, ValidationError):
            return  # of another version, or torn: better to show the rest

    def log(self) -> RunLog:
        """The run up to now."""
        episodes = sorted(self._episodes.values(), key=lambda e: e.ended_s)
        return RunLog(
            steps=tuple(self._steps[number] for number in sorted(self._steps)),
            episodes=tuple(episodes),
        )

    def _go_back_to(self, step: int) -> None:
        self._steps = {number: entry for number, entry in self._steps.items() if number <= step}
        self._groups.clear()
        self._retries.clear()

    def _add_episode(self, ended_s: float, fields: dict[str, Any]) -> None:
        rollout_id: str = fields["rollout_id"]
        timings = fields.get("timings")
        lasted_s = fields.get("total_s") or 0.0
        self._episodes[rollout_id] = EpisodeEntry(
            rollout_id=rollout_id,
            group_id=fields.get("group_id") or rollout_id.rpartition("-")[0],
            instance_id=fields["instance_id"],
            outcome=Outcome(fields["outcome"]),
            exit_status=str(fields["exit_status"]),
            reward=fields["reward"],
            error=fields.get("error"),
            began_s=fields.get("began_s", ended_s - lasted_s),
            ended_s=ended_s,
            num_turns=fields["num_turns"],
            num_retries=self._retries.pop(rollout_id, 0),
            timings=None if timings is None else _TIMINGS.validate_python(timings),
        )

    def _add_step(self, ended_s: float, fields: dict[str, Any]) -> None:
        step: int = fields["step"]
        groups = sorted(self._groups.pop(step, []), key=lambda group: group.task_index)
        self._steps[step] = StepEntry(
            step=step,
            version=fields["version"],
            trained=fields["trained"],
            ended_s=ended_s,
            metrics=fields["metrics"],
            groups=tuple(map(self._joined, groups)),
        )

    def _joined(self, group: GroupEntry) -> GroupEntry:
        found = (self._episodes.get(f"{group.group_id}-{n}") for n in range(len(group.rewards)))
        return replace(group, episodes=tuple(episode for episode in found if episode is not None))


def run_log(events: Iterable[Event]) -> RunLog:
    """Join the events of a run."""
    builder = RunLogBuilder()
    for event in events:
        builder.add(event)
    return builder.log()


def _group(fields: dict[str, Any]) -> GroupEntry:
    return GroupEntry(
        group_id=fields["group_id"],
        instance_id=fields["instance_id"],
        task_index=fields["task_index"],
        rewards=tuple(fields["rewards"]),
        kept=fields["kept"],
        drop_reason=fields["drop_reason"],
    )


_TIMINGS = TypeAdapter(Timings)
