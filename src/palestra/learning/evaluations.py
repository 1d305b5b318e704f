"""``evaluations/STEP-MODE.jsonl.zst``: every episode of a held-out evaluation.

The first line says what was evaluated and how; an evaluation that a run needs again
(because it was killed after it) is taken from the disk if that line is what it wants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from palestra.config import EvaluationMode
from palestra.errors import HostError
from palestra.learning.metrics import outcome_metrics
from palestra.learning.pass_at_k import (
    Measure,
    TaskTries,
    reported_pass_at_k,
    solve_rate,
    tries_by_task,
)
from palestra.learning.rollouts.json_lines import (
    SUFFIX,
    discard,
    read_json_lines,
    write_json_lines,
)
from palestra.records import Rollout
from palestra.wire import episode_from_wire, episode_to_wire, trace_from_wire, trace_to_wire

_READING = "cannot read an evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What is evaluated, and how; two evaluations with equal plans stand for each other.

    Attributes:
        step: after which the policy is evaluated; 0 is the start.
        version: of the weights.
        mode: sampled or greedy.
        temperature: of the sampling; 0 is greedy.
        attempts: at each task.
        tasks: a digest of the held-out tasks.
    """

    step: int
    version: int
    mode: EvaluationMode
    temperature: float
    attempts: int
    tasks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedEpisode:
    """One attempt at a held-out task.

    Attributes:
        attempt: number of the attempt at this task, from 0.
        statement: the issue text.
        kind: what sort of task it is: a family of katas, or a repository.
        rollout: the episode and the ids that were sampled in it.
    """

    attempt: int
    statement: str
    kind: str
    rollout: Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A complete evaluation in one mode.

    Attributes:
        plan: what was evaluated, and how.
        duration_s: how long it took, in seconds.
        episodes: every attempt, by task; also those that the infrastructure failed.
        background: whether training went on meanwhile.
    """

    plan: EvaluationPlan
    duration_s: float
    episodes: tuple[EvaluatedEpisode, ...]
    background: bool = False

    @property
    def tries(self) -> tuple[TaskTries, ...]:
        """The graded attempts, by task."""
        rollouts = (attempt.rollout for attempt in self.episodes)
        return tries_by_task((r.episode.instance_id, r.reward) for r in rollouts)

    @property
    def versions(self) -> tuple[int, int] | None:
        """The oldest and the newest weights that sampled in it; ``None`` if nothing did.

        They are those of the plan, unless new weights were published meanwhile.
        """
        found = {v for a in self.episodes for v in a.rollout.trace.policy_versions}
        return (min(found), max(found)) if found else None

    def pass_at(self) -> dict[int, Measure]:
        """Pass@k by k; nothing where each task was attempted once."""
        return reported_pass_at_k(self.tries, self.plan.attempts)

    def metrics(self) -> dict[str, float]:
        """Shares of outcomes; solve rate and pass@k, each with its 95 % interval by task.

        ``episodes`` counts those that were graded; rates are over them. ``pass@K_tasks`` is there
        where tasks were left out of ``pass@K``, because too many tries at them failed.
        """
        episodes = [attempt.rollout.episode for attempt in self.episodes]
        graded = sum(episode.reward is not None for episode in episodes)
        metrics = {"episodes": float(graded), "time_s": self.duration_s}
        metrics |= outcome_metrics(episodes)
        rate = solve_rate(self.tries)
        if rate is not None:
            metrics |= _with_interval("solve_rate", rate)
        num_tasks = len({episode.instance_id for episode in episodes})
        for k, measure in self.pass_at().items():
            metrics |= _with_interval(f"pass@{k}", measure)
            if measure.num_tasks < num_tasks:
                metrics[f"pass@{k}_tasks"] = float(measure.num_tasks)
        if self.versions is not None:
            oldest, newest = self.versions
            metrics |= {"oldest_version": float(oldest), "newest_version": float(newest)}
        return metrics


class EvaluationStore:
    """The evaluations of one run; a file is whole or not there.

    Args:
        folder: ``evaluations/`` of the run; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int, mode: str) -> Path:
        """Where the evaluation after ``step`` in a mode lies."""
        return self._folder / f"{step}-{mode}{SUFFIX}"

    def write(self, evaluation: Evaluation) -> Path:
        """Write an evaluation; another one of this step and mode is set aside.

        Raises:
            HostError: the disk is full, there is no permission, or the like.
        """
        doing = "cannot write the evaluation"
        target = self.path(evaluation.plan.step, evaluation.plan.mode)
        try:
            if target.exists():
                discard(target)
        except OSError as error:
            raise HostError.from_os(error, doing=doing) from error
        return write_json_lines(target, _lines(evaluation), doing=doing)

    def find(self, plan: EvaluationPlan) -> Evaluation | None:
        """The evaluation of a plan, if it was completed before.

        Raises:
            HostError: the file cannot be read.
        """
        path = self.path(plan.step, plan.mode)
        if not path.exists():
            return None
        evaluation = _read(path)
        return evaluation if evaluation.plan == plan else None

    def read_all(self) -> list[Evaluation]:
        """Every evaluation, by step; within a step in the order in which they were made.

        Raises:
            HostError: a file cannot be read.
        """
        paths = [path for _, path in self._by_step()]
        return [_read(path) for path in paths]

    def set_aside(self, *, after_step: int) -> list[Path]:
        """Rename the evaluations of later steps, which will be done again, to ``*.discarded``.

        Returns:
            Their new paths.

        Raises:
            HostError: a file cannot be renamed.
        """
        try:
            for leftover in self._folder.glob("*.tmp"):
                leftover.unlink()
            return [discard(path) for step, path in self._by_step() if step > after_step]
        except OSError as error:
            raise HostError.from_os(error, doing="cannot set evaluations aside") from error

    def _by_step(self) -> list[tuple[int, Path]]:
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            step, dash, _ = path.name.partition("-")
            if dash and step.isdecimal():
                found.append((int(step), path))
        return sorted(found, key=lambda item: (item[0], item[1].stat().st_mtime_ns, item[1].name))


def _with_interval(name: str, measure: Measure) -> dict[str, float]:
    return {
        name: measure.share,
        f"{name}_low": measure.interval.low,
        f"{name}_high": measure.interval.high,
    }


def _lines(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    yield {
        "plan": _PLAN.dump_python(evaluation.plan, mode="json"),
        "duration_s": evaluation.duration_s,
        "background": evaluation.background,
    }
    for episode in evaluation.episodes:
        yield {
            "attempt": episode.attempt,
            "statement": episode.statement,
            "kind": episode.kind,
            "rollout_id": episode.rollout.rollout_id,
            "reward": episode.rollout.reward,
            "episode": episode_to_wire(episode.rollout.episode),
            "trace": trace_to_wire(episode.rollout.trace),
        }


def _read(path: Path) -> Evaluation:
    try:
        head, *lines = read_json_lines(path, doing=_READING)
        return Evaluation(
            plan=_PLAN.validate_python(head["plan"]),
            duration_s=float(head["duration_s"]),
            background=bool(head.get("background", False)),
            episodes=tuple(map(_episode, lines)),
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise HostError(f"{_READING} ({path}): {what}") from error


def _episode(line: dict[str, Any]) -> EvaluatedEpisode:
    return EvaluatedEpisode(
        attempt=line["attempt"],
        statement=line["statement"],
        kind=line["kind"],
        rollout=Rollout(
            rollout_id=line["rollout_id"],
            episode=episode_from_wire(line["episode"]),
            trace=trace_from_wire(line["trace"]),
        ),
    )


_PLAN = TypeAdapter(EvaluationPlan)
