"""Which stage a step was waiting for at each of its instants; pure functions.

A step waits for its last group, that for its last episode, and that one, before it began,
for the place of the episode which ended just then: so the wait is one chain of episodes
back to the step's begin. Each instant of it belongs to the stage that the episode of the
chain was in; an instant at which no episode of the chain was at work is idle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from palestra.dashboard.run_log import EpisodeEntry, RunLog, StepEntry
from palestra.records import Timings

_CLOCK_S = 0.01
"""Two times of one clock that are as near as this are the same moment."""


class Stage(StrEnum):
    """What a step waits for."""

    QUEUE = "queue"  # a place at work in the environment server
    PULL = "pull"  # the task's image
    START = "start"  # the agent's sandbox
    MODEL = "model"  # prefill and decode, as the agent sees them
    COMMAND = "command"  # commands of the agent in its sandbox
    GRADING = "grading"  # the hidden tests
    RETRY = "retry"  # attempts that the infrastructure failed, and the pause after them
    TRAIN = "train"
    PUBLISH = "publish"  # weights to the engine
    OTHER = "other"  # diffs, the agent's own time, storing rollouts
    UNTIMED = "untimed"  # episodes whose stages nobody timed
    IDLE = "idle"  # nothing that the step waited for was at work


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPiece:
    """A part of a step's critical path.

    Attributes:
        stage: that it was in.
        began_s: Unix seconds.
        ended_s: Unix seconds.
        rollout_id: of the episode that was waited for, if it was one.
    """

    stage: Stage
    began_s: float
    ended_s: float
    rollout_id: str | None = None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_s - self.began_s


def step_path(log: RunLog, step: StepEntry) -> tuple[PathPiece, ...]:
    """The critical path of a step, in order, without gaps from its begin to its end.

    Empty when the step did not say how long it took.
    """
    wall_s = step.metrics.get("time/step_s")
    if wall_s is None:
        return ()
    began_s = step.ended_s - wall_s
    waited_s = min(began_s + step.metrics.get("rollout/wait_s", 0.0), step.ended_s)
    trained_s = min(waited_s + step.metrics.get("time/train_s", 0.0), step.ended_s)
    published_s = min(trained_s + step.metrics.get("time/publish_s", 0.0), step.ended_s)
    pieces = [
        *_wait_path(log, step, began_s, waited_s),
        PathPiece(stage=Stage.TRAIN, began_s=waited_s, ended_s=trained_s),
        PathPiece(stage=Stage.PUBLISH, began_s=trained_s, ended_s=published_s),
        PathPiece(stage=Stage.OTHER, began_s=published_s, ended_s=step.ended_s),
    ]
    return tuple(piece for piece in pieces if piece.seconds > 0)


def episode_pieces(episode: EpisodeEntry) -> tuple[PathPiece, ...]:
    """The stages of an episode in order, without gaps from its begin to its end.

    Model calls and commands take turns; they are given as one block each, with the
    agent's own time behind them.
    """
    return tuple(_clipped(episode, episode.began_s, episode.ended_s))


def _wait_path(
    log: RunLog, step: StepEntry, began_s: float, waited_s: float
) -> Iterator[PathPiece]:
    """From the begin of a step to its last group, in order."""
    chain: list[list[PathPiece]] = []
    cursor_s = waited_s
    episode = max(step.episodes, key=lambda e: e.ended_s, default=None)
    while episode is not None and cursor_s > began_s:
        until_s = max(began_s, min(cursor_s, episode.ended_s))
        from_s = max(began_s, min(until_s, episode.began_s))
        idle = PathPiece(stage=Stage.IDLE, began_s=until_s, ended_s=cursor_s)
        chain.append([*_clipped(episode, from_s, until_s), idle])
        cursor_s = from_s
        episode = _predecessor(log, episode)
    yield PathPiece(stage=Stage.IDLE, began_s=began_s, ended_s=cursor_s)
    for pieces in reversed(chain):
        yield from pieces


def _predecessor(log: RunLog, episode: EpisodeEntry) -> EpisodeEntry | None:
    """The episode that ended last before another one began."""
    index = bisect_right(log.ends_s, episode.began_s + _CLOCK_S)
    for candidate in reversed(log.episodes[:index]):
        if candidate.began_s < episode.began_s:
            return candidate
    return None


def _clipped(episode: EpisodeEntry, from_s: float, until_s: float) -> Iterator[PathPiece]:
    at_s = episode.began_s
    for shares, seconds in _blocks(episode):
        low_s, high_s = max(at_s, from_s), min(at_s + seconds, until_s)
        at_s += seconds
        if high_s <= low_s:
            continue
        begin_s = low_s
        for stage, share in shares:
            end_s = begin_s + share * (high_s - low_s)
            yield PathPiece(
                stage=stage, began_s=begin_s, ended_s=end_s, rollout_id=episode.rollout_id
            )
            begin_s = end_s


_Shares = tuple[tuple[Stage, float], ...]


def _blocks(episode: EpisodeEntry) -> list[tuple[_Shares, float]]:
    """Parts of an episode in order: which stages share each, and its seconds."""
    lasted_s = max(0.0, episode.ended_s - episode.began_s)
    timings = episode.timings
    if timings is None or timings.total_s is None:
        return [(((Stage.UNTIMED, 1.0),), lasted_s)]
    known = [
        (Stage.QUEUE, timings.queue_s),
        (Stage.PULL, timings.image_s),
        (Stage.START, timings.start_s),
    ]
    blocks: list[tuple[_Shares, float]] = [(((s, 1.0),), seconds or 0.0) for s, seconds in known]
    blocks.append((_agent_shares(timings), timings.agent_s or 0.0))
    begun_s = sum(seconds for _, seconds in blocks) + (timings.eval_s or 0.0)
    work_s = max((timings.queue_s or 0.0) + timings.total_s, begun_s)
    blocks.append((((Stage.OTHER, 1.0),), work_s - begun_s))
    blocks.append((((Stage.GRADING, 1.0),), timings.eval_s or 0.0))
    lead = Stage.RETRY if episode.num_retries else Stage.IDLE
    # Another machine's clock may run faster, but it cannot have worked longer than we waited.
    scale = min(1.0, lasted_s / work_s) if work_s else 0.0
    scaled = [(shares, seconds * scale) for shares, seconds in blocks]
    return [(((lead, 1.0),), lasted_s - work_s * scale), *scaled]


def _agent_shares(timings: Timings) -> _Shares:
    model_s, env_s = timings.model_s or 0.0, timings.env_s or 0.0
    whole_s = max(timings.agent_s or 0.0, model_s + env_s)
    if not whole_s:
        return ((Stage.OTHER, 1.0),)
    shares = ((Stage.MODEL, model_s / whole_s), (Stage.COMMAND, env_s / whole_s))
    return (*shares, (Stage.OTHER, 1.0 - (model_s + env_s) / whole_s))


def merged(pieces: Iterable[PathPiece]) -> Iterator[PathPiece]:
    """Join neighbours of one stage and one episode."""
    last: PathPiece | None = None
    for piece in pieces:
        if last is None:
            last = piece
        elif (piece.stage, piece.rollout_id) == (last.stage, last.rollout_id):
            last = replace(last, ended_s=piece.ended_s)
        else:
            yield last
            last = piece
    if last is not None:
        yield last
