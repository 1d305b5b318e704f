"""What the pages know of a run: its event log in columns and short rows, never its episodes.

The log is read once and then from where it ended; contents of episodes stay on the disk.
"""

from __future__ import annotations

import math
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from palestra.dashboard.tail import JsonLinesTail
from palestra.run.directory import RunDirectory

MAX_NOTICES = 200
_MAX_ERROR_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRow:
    """One episode of training in the list.

    Attributes:
        rollout_id: its name.
        group_id: of its group.
        instance_id: of its task.
        outcome: why it ended.
        exit_status: how the agent stopped.
        reward: ``None`` when it must not be trained on.
        num_turns: model calls.
        total_s: how long it took, in seconds.
        ended_s: when it ended, Unix seconds.
        versions: of the weights that sampled it.
        step: that used it up; ``None`` until then.
        kept: whether its group was trained on; ``None`` until that is decided.
        drop_reason: why not.
        error: what went wrong, shortened.
    """

    rollout_id: str
    group_id: str
    instance_id: str
    outcome: str
    exit_status: str
    reward: float | None
    num_turns: int | None
    total_s: float | None
    ended_s: float
    versions: tuple[int, ...] = ()
    step: int | None = None
    kept: bool | None = None
    drop_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something worth a line: a retry, a quarantine, a checkpoint, a restart."""

    time_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A held-out evaluation, as its event tells it."""

    step: int
    time_s: float
    metrics: Mapping[str, float]


class MetricColumns:
    """Metrics by step: one array of numbers a metric, NaN where a step did not report it."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.times_s: list[float] = []
        self._columns: dict[str, array[float]] = {}

    @property
    def names(self) -> list[str]:
        """Every metric that some step reported."""
        return sorted(self._columns)

    def append(self, step: int, time_s: float, metrics: Mapping[str, Any]) -> None:
        """Add a step, which replaces itself and all that came after it."""
        self.truncate(after_step=step - 1)
        for name, value in metrics.items():
            if isinstance(value, int | float):
                column = self._columns.get(name)
                if column is None:
                    column = self._columns[name] = array("d")
                column.extend([math.nan] * (len(self.steps) - len(column)))
                column.append(value)
        self.steps.append(step)
        self.times_s.append(time_s)

    def truncate(self, *, after_step: int) -> None:
        """Forget later steps, which will be done again."""
        while self.steps and self.steps[-1] > after_step:
            self.steps.pop()
            self.times_s.pop()
        for column in self._columns.values():
            del column[len(self.steps) :]

    def column(self, name: str) -> list[float | None]:
        """The metric at each step; ``None`` where it was not reported."""
        column = self._columns.get(name, array("d"))
        values = [None if math.isnan(value) else value for value in column]
        return [*values, *[None] * (len(self.steps) - len(values))]

    def last(self, name: str) -> float | None:
        """What was reported last."""
        return next((value for value in reversed(self.column(name)) if value is not None), None)

    def at(self, index: int) -> dict[str, float]:
        """All metrics of the step at a place."""
        found = ((n, c[index]) for n, c in self._columns.items() if index < len(c))
        return {name: value for name, value in found if not math.isnan(value)}


class RunIndex:
    """One run, read incrementally; safe to use from several threads.

    Args:
        run: the directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._tail = JsonLinesTail(run.events)
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.metrics = MetricColumns()
        self.held_out: dict[int, HeldOut] = {}
        self.notices: list[Notice] = []
        self.facts: Mapping[str, Any] = {}
        self.sandbox: str | None = None
        self.environment_url: str | None = None
        self.version: int | None = None
        self.num_lives = 0
        self.began_s: float | None = None
        self.heard_s: float | None = None
        self.revision = 0
        """Rises with every event."""
        self._rows: list[EpisodeRow] = []
        self._places: dict[str, int] = {}

    def refresh(self) -> RunIndex:
        """Read what the log says since the last time."""
        with self._lock:
            if self._tail.was_replaced():
                self._tail.restart()
                self._forget()
            for event in self._tail.read_new():
                self._take(event)
        return self

    def episodes(self) -> list[EpisodeRow]:
        """All episodes of training, by the time when they ended."""
        with self._lock:
            return list(self._rows)

    def episode(self, rollout_id: str) -> EpisodeRow | None:
        """The row of an episode."""
        with self._lock:
            place = self._places.get(rollout_id)
            return None if place is None else self._rows[place]

    def siblings(self, row: EpisodeRow) -> list[EpisodeRow]:
        """The episodes of its group that have ended, by number, itself included."""
        found = (self.episode(name) for name in _numbered(row.group_id, limit=4096))
        members = []
        misses = 0
        for one in found:
            if one is not None:
                members.append(one)
                misses = 0
            elif (misses := misses + 1) > 64:
                break
        return members

    # --- events ---------------------------------------------------------------

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.get("kind")
        time_s = event.get("time_s")
        if not isinstance(kind, str) or not isinstance(time_s, int | float):
            return
        self.revision += 1
        self.heard_s = max(self.heard_s or 0.0, float(time_s))
        if self.began_s is None:
            self.began_s = float(time_s)
        handler = self._HANDLERS.get(kind)
        try:
            if handler is not None:
                handler(self, float(time_s), event)
        except (KeyError, TypeError, ValueError, AttributeError):
            return  # of another version, or torn
        words = _NOTICES.get(kind)
        if words is not None:
            self.notices.append(Notice(time_s=float(time_s), kind=kind, text=words(event)))
            del self.notices[:-MAX_NOTICES]

    def _on_started(self, _: float, event: dict[str, Any]) -> None:
        self.num_lives += 1
        self.environment_url = None
        facts = event.get("facts")
        self.facts = facts if isinstance(facts, dict) else {}

    def _on_sandbox(self, _: float, event: dict[str, Any]) -> None:
        self.sandbox = str(event["description"])

    def _on_environment(self, _: float, event: dict[str, Any]) -> None:
        self.environment_url = str(event["url"])

    def _on_loop(self, _: float, event: dict[str, Any]) -> None:
        """What was not used up by the step that the run goes on from will be done again."""
        step = int(event["step"])
        self.version = int(event["version"])
        self.metrics.truncate(after_step=step)
        self.held_out = {s: h for s, h in self.held_out.items() if s <= step}
        self._rows = [row for row in self._rows if row.step is not None and row.step <= step]
        self._places = {row.rollout_id: place for place, row in enumerate(self._rows)}

    def _on_rollout(self, time_s: float, event: dict[str, Any]) -> None:
        rollout_id = str(event["rollout_id"])
        total_s, error = event.get("total_s"), event.get("error")
        row = EpisodeRow(
            rollout_id=rollout_id,
            group_id=sys.intern(rollout_id.rpartition("-")[0]),
            instance_id=sys.intern(str(event["instance_id"])),
            outcome=sys.intern(str(event["outcome"])),
            exit_status=sys.intern(str(event.get("exit_status"))),
            reward=_number(event.get("reward")),
            num_turns=event.get("num_turns"),
            total_s=_number(total_s),
            ended_s=time_s,
            versions=tuple(event.get("versions") or ()),
            error=str(error)[:_MAX_ERROR_CHARS] if error else None,
        )
        place = self._places.get(rollout_id)
        if place is None:
            self._places[rollout_id] = len(self._rows)
            self._rows.append(row)
        else:
            self._rows[place] = row

    def _on_group(self, _: float, event: dict[str, Any]) -> None:
        step, reason = int(event["step"]), event.get("drop_reason")
        for name in _numbered(str(event["group_id"]), limit=len(event["rewards"])):
            place = self._places.get(name)
            if place is not None:
                self._rows[place] = replace(
                    self._rows[place],
                    step=step,
                    kept=bool(event["kept"]),
                    drop_reason=sys.intern(str(reason)) if reason else None,
                )

    def _on_step(self, time_s: float, event: dict[str, Any]) -> None:
        self.version = int(event["version"])
        self.metrics.append(int(event["step"]), time_s, event["metrics"])

    def _on_evaluation(self, time_s: float, event: dict[str, Any]) -> None:
        step = int(event["step"])
        self.held_out[step] = HeldOut(step=step, time_s=time_s, metrics=dict(event["metrics"]))

    _HANDLERS: ClassVar[Mapping[str, Callable[[RunIndex, float, dict[str, Any]], None]]] = {
        "run.started": _on_started,
        "sandbox.chosen": _on_sandbox,
        "environment.ready": _on_environment,
        "loop.started": _on_loop,
        "rollout": _on_rollout,
        "group": _on_group,
        "step": _on_step,
        "evaluation": _on_evaluation,
    }


def _numbered(group_id: str, *, limit: int) -> Iterator[str]:
    return (f"{group_id}-{number}" for number in range(limit))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _name_of(event: Mapping[str, Any]) -> str:
    return Path(str(event.get("path", ""))).name


_NOTICES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "run.started": lambda e: "the run was started",
    "loop.started": lambda e: f"training goes on after step {e.get('step')}",
    "rollout.retry": lambda e: f"{e.get('rollout_id')} tried again: {e.get('error')}",
    "task.quarantined": lambda e: f"{e.get('instance_id')} left out: its tests flake",
    "episode.unexpected": lambda e: f"{e.get('instance_id')}: {e.get('error')}",
    "evaluation.skipped": lambda e: (
        f"held-out evaluation after step {e.get('step')} left out: another one was running"
    ),
    "checkpoint.saved": lambda e: f"checkpoint of step {e.get('step')} saved",
    "checkpoint.ignored": lambda e: f"checkpoint {_name_of(e)} ignored: {e.get('reason')}",
}
