"""Which episodes a list shows, and in which order; pure functions but for reading evaluations."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from palestra.dashboard.index import EpisodeRow
from palestra.dashboard.rollout_files import lines_of
from palestra.learning.rollouts.json_lines import SUFFIX
from palestra.report.visible import shown
from palestra.run.directory import RunDirectory

TRAINING = "training"
PAGE_ROWS = 200
MAX_ROWS = 1_000
_MAX_FILES = 4
REWARDS: Mapping[str, Callable[[float | None], bool]] = {
    "1": lambda reward: reward == 1.0,
    "0": lambda reward: reward == 0.0,
    "between": lambda reward: reward is not None and 0.0 < reward < 1.0,
    "none": lambda reward: reward is None,
}
SORTS: Mapping[str, tuple[str, Callable[[EpisodeRow], Any]]] = {
    "newest": ("newest first", lambda row: -row.ended_s),
    "oldest": ("oldest first", lambda row: row.ended_s),
    "longest": ("longest time first", lambda row: -(row.total_s or 0.0)),
    "turns": ("most turns first", lambda row: -(row.num_turns or 0)),
    "task": ("by task", lambda row: (row.instance_id, row.ended_s)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What the filters say; an empty one lets everything through.

    Attributes:
        outcome: exactly.
        task: a part of the task's or the rollout's name.
        steps: first and last step, both included.
        is_waiting: only episodes that no step has used up yet.
        reward: a key of :data:`REWARDS`.
        sort: a key of :data:`SORTS`.
    """

    outcome: str = ""
    task: str = ""
    steps: tuple[int, int] | None = None
    is_waiting: bool = False
    reward: str = ""
    sort: str = "newest"

    def admits(self, row: EpisodeRow) -> bool:
        """Whether a row passes the filters."""
        if self.outcome and row.outcome != self.outcome:
            return False
        if self.is_waiting and row.step is not None:
            return False
        if self.steps is not None and not (
            row.step is not None and self.steps[0] <= row.step <= self.steps[1]
        ):
            return False
        if self.reward and not REWARDS[self.reward](row.reward):
            return False
        wanted = self.task.lower()
        return wanted in row.instance_id.lower() or wanted in row.rollout_id.lower()


def parse_query(fields: Mapping[str, str]) -> Query:
    """Read the fields of a form; what makes no sense filters nothing."""
    step = fields.get("step", "").strip()
    reward, sort = fields.get("reward", ""), fields.get("sort", "")
    return Query(
        outcome=fields.get("outcome", ""),
        task=fields.get("task", "").strip(),
        steps=_steps(step),
        is_waiting=step == "none",
        reward=reward if reward in REWARDS else "",
        sort=sort if sort in SORTS else "newest",
    )


def select(rows: Iterable[EpisodeRow], query: Query) -> list[EpisodeRow]:
    """The rows that pass, in order."""
    return sorted(filter(query.admits, rows), key=SORTS[query.sort][1])


def to_wire(row: EpisodeRow) -> list[Any]:
    """A row as the list's script reads it."""
    return [
        row.rollout_id,
        shown(row.instance_id),
        row.step,
        row.outcome,
        row.reward,
        row.num_turns,
        row.total_s,
        list(row.versions),
        row.kept,
        row.drop_reason,
        shown(row.exit_status),
        row.ended_s,
    ]


class EvaluationRows:
    """Rows of held-out evaluations, which no event lists: their files are read once."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[tuple[int, int], list[EpisodeRow]]] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, run: RunDirectory) -> list[str]:
        """The evaluations of a run, as ``STEP-MODE``, by step."""
        found = (path.name.removesuffix(SUFFIX) for path in run.evaluations.glob(f"*{SUFFIX}"))
        return sorted(
            (name for name in found if name.partition("-")[0].isdecimal()),
            key=lambda name: (int(name.partition("-")[0]), name),
        )

    def path(self, run: RunDirectory, name: str) -> Path | None:
        """The file of an evaluation; ``None``: there is no such one."""
        return run.evaluations / f"{name}{SUFFIX}" if name in self.names(run) else None

    def read(self, path: Path) -> Sequence[EpisodeRow]:
        """The rows of a file.

        Raises:
            HostError: it cannot be read.
        """
        try:
            found = path.stat()
        except OSError:
            return []
        stamp = (found.st_mtime_ns, found.st_size)
        with self._lock:
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                step = int(path.name.partition("-")[0])
                rows = [row for line in lines_of(path) if (row := _row(line, step, found.st_mtime))]
                known = self._known[path] = (stamp, rows)
            self._known.move_to_end(path)
            while len(self._known) > _MAX_FILES:
                self._known.popitem(last=False)
            return known[1]


def _row(line: bytes, step: int, ended_s: float) -> EpisodeRow | None:
    try:
        found = orjson.loads(line.decode("utf-8", "replace"))
        episode = found["episode"]
        turns = found["trace"]["turns"]
        return EpisodeRow(
            rollout_id=str(found["rollout_id"]),
            group_id=str(episode["instance_id"]),
            instance_id=str(episode["instance_id"]),
            outcome=str(episode["outcome"]),
            exit_status=str(episode["exit_status"]),
            reward=found["reward"],
            num_turns=episode["num_turns"],
            total_s=episode["timings"]["total_s"],
            ended_s=ended_s,
            versions=tuple(sorted({s["policy_version"] for t in turns for s in t["segments"]})),
            step=step,
            error=episode.get("error"),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None  # the head of the file, or a torn line


def _steps(text: str) -> tuple[int, int] | None:
    first, dash, last = text.partition("-")
    if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
        return None
    return int(first), int(last) if dash else int(first)
