"""Why a run is slow: what its steps waited for, and which episodes held them up."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from palestra.config import Recipe
from palestra.dashboard.critical_path import (
    PathPiece,
    Stage,
    episode_pieces,
    merged,
    step_path,
)
from palestra.dashboard.run_log import EpisodeEntry, RunLog, StepEntry
from palestra.dashboard.slow_advice import Advice, advise
from palestra.records import CommandRun, EpisodeResult
from palestra.report.words import duration, percent

NUM_WORST = 10

STAGE_WORDS = {
    Stage.QUEUE: "a place in the environment server",
    Stage.PULL: "images",
    Stage.START: "starting sandboxes",
    Stage.MODEL: "the model (prefill and decode)",
    Stage.COMMAND: "commands in the sandbox",
    Stage.GRADING: "grading",
    Stage.RETRY: "retries after infrastructure trouble",
    Stage.TRAIN: "training",
    Stage.PUBLISH: "publishing weights",
    Stage.OTHER: "diffs, the agent's own time, storing",
    Stage.UNTIMED: "episodes whose stages were not timed",
    Stage.IDLE: "nothing: no episode was at work",
}
"""What a step waited for, after "of the time went to"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """Seconds of one stage, and its share of the whole in [0, 1]."""

    stage: Stage
    seconds: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Where the wall-clock time of one step went.

    Attributes:
        step: its number.
        began_s: Unix seconds.
        wall_s: how long it took, without the checkpoint and the evaluation after it.
        stages: seconds on the critical path, which add up to ``wall_s``; longest first.
        path: the critical path in order, without gaps.
        num_episodes: that it used up.
    """

    step: int
    began_s: float
    wall_s: float
    stages: tuple[StageTime, ...]
    path: tuple[PathPiece, ...]
    num_episodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowEpisode:
    """An episode that held its step up, or would have next.

    Attributes:
        rollout_id: its id.
        instance_id: of its task.
        step: that used it up.
        lasted_s: from its place to its end, retries included.
        critical_s: for how much of that a step waited for it.
        stages: of all its time; longest first.
        command: its longest command, where it is known.
    """

    rollout_id: str
    instance_id: str
    step: int
    lasted_s: float
    critical_s: float
    stages: tuple[StageTime, ...]
    command: CommandRun | None = None

    @property
    def longest(self) -> StageTime | None:
        """The stage that took most of it."""
        return self.stages[0] if self.stages else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowReport:
    """Why a run, or some steps of it, took as long as they did.

    Attributes:
        steps: in order; those that did not say how long they took are left out.
        wall_s: of all of them together.
        stages: of all of them together; longest first.
        between_s: on the clock between them: checkpoints, evaluations, restarts.
        worst: the ten episodes that steps waited for longest, worst first.
        advice: what to change, the largest share first.
        verdict: one sentence.
    """

    steps: tuple[StepTime, ...]
    wall_s: float
    stages: tuple[StageTime, ...]
    between_s: float
    worst: tuple[SlowEpisode, ...]
    advice: tuple[Advice, ...]
    verdict: str


def why_slow(log: RunLog, recipe: Recipe, *, step: int | None = None) -> SlowReport:
    """Say where the time of a run went.

    Args:
        log: of the run.
        recipe: of the run; what to change is said of its keys.
        step: of this step alone.
    """
    chosen = [entry for entry in log.steps if step is None or entry.step == step]
    timed = [(entry, time) for entry in chosen if (time := _step_time(log, entry)) is not None]
    times = tuple(time for _, time in timed)
    entries = [entry for entry, _ in timed]
    wall_s = sum(time.wall_s for time in times)
    stages = _stage_times(piece for time in times for piece in time.path)
    return SlowReport(
        steps=times,
        wall_s=wall_s,
        stages=stages,
        between_s=_between_s(times),
        worst=_worst(entries, times),
        advice=advise(recipe, entries, {time.stage: time.share for time in stages}),
        verdict=_verdict(stages, wall_s),
    )


def with_commands(report: SlowReport, episodes: Mapping[str, EpisodeResult]) -> SlowReport:
    """Add the longest command of each of the worst episodes.

    Args:
        report: to add to.
        episodes: by rollout id, as the run's rollout files have them.
    """

    def longest(slow: SlowEpisode) -> CommandRun | None:
        found = episodes.get(slow.rollout_id)
        commands = found.commands if found is not None else None
        return max(commands or (), key=lambda command: command.duration_s, default=None)

    return replace(
        report, worst=tuple(replace(slow, command=longest(slow)) for slow in report.worst)
    )


def _step_time(log: RunLog, entry: StepEntry) -> StepTime | None:
    path = tuple(merged(step_path(log, entry)))
    if not path:
        return None
    return StepTime(
        step=entry.step,
        began_s=path[0].began_s,
        wall_s=path[-1].ended_s - path[0].began_s,
        stages=_stage_times(path),
        path=path,
        num_episodes=len(entry.episodes),
    )


def _stage_times(pieces: Iterable[PathPiece]) -> tuple[StageTime, ...]:
    seconds: defaultdict[Stage, float] = defaultdict(float)
    for piece in pieces:
        seconds[piece.stage] += piece.seconds
    total = sum(seconds.values())
    times = (
        StageTime(stage=stage, seconds=value, share=value / total)
        for stage, value in seconds.items()
        if value > 0
    )
    return tuple(sorted(times, key=lambda time: -time.seconds))


def _between_s(times: tuple[StepTime, ...]) -> float:
    if not times:
        return 0.0
    spanned_s = times[-1].began_s + times[-1].wall_s - times[0].began_s
    return max(0.0, spanned_s - sum(time.wall_s for time in times))


def _worst(entries: list[StepEntry], times: tuple[StepTime, ...]) -> tuple[SlowEpisode, ...]:
    critical_s: defaultdict[str, float] = defaultdict(float)
    for time in times:
        for piece in time.path:
            if piece.rollout_id is not None:
                critical_s[piece.rollout_id] += piece.seconds

    def badness(found: tuple[int, EpisodeEntry]) -> tuple[float, float]:
        episode = found[1]
        return critical_s[episode.rollout_id], episode.ended_s - episode.began_s

    worst = heapq.nlargest(NUM_WORST, _episodes(entries), key=badness)
    return tuple(
        SlowEpisode(
            rollout_id=episode.rollout_id,
            instance_id=episode.instance_id,
            step=step,
            lasted_s=episode.ended_s - episode.began_s,
            critical_s=critical_s[episode.rollout_id],
            stages=_stage_times(episode_pieces(episode)),
        )
        for step, episode in worst
    )


def _episodes(entries: list[StepEntry]) -> Iterator[tuple[int, EpisodeEntry]]:
    for entry in entries:
        for episode in entry.episodes:
            yield entry.step, episode


def _verdict(stages: tuple[StageTime, ...], wall_s: float) -> str:
    if not stages:
        return "no step is complete yet"
    first = stages[0]
    text = f"{percent(first.share)} of {duration(wall_s)} went to {STAGE_WORDS[first.stage]}"
    if len(stages) > 1 and stages[1].share >= 0.1:
        text += f", {percent(stages[1].share)} to {STAGE_WORDS[stages[1].stage]}"
    return text
