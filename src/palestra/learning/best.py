"""Which checkpoints did best on held-out tasks: ``checkpoints/scores.json``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from palestra.errors import CheckpointError, HostError

_NAME = "scores.json"


class _Scores(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    scores: dict[int, float]


class BestCheckpoints:
    """Remembers the score of each step that was evaluated; it outlives the process.

    Args:
        folder: of the run's checkpoints.
        metric: of an evaluation that is the score, as ``sampled/solve_rate``; more is better.
            Scores of another metric, from an earlier life of the run, are forgotten.
        count: how many checkpoints are worth keeping for their score.

    Raises:
        CheckpointError: what an earlier process left cannot be read.
    """

    def __init__(self, folder: Path, *, metric: str, count: int) -> None:
        self._path = folder / _NAME
        self._metric = metric
        self._count = count
        found = _read(self._path)
        self._scores = dict(found.scores) if found and found.metric == metric else {}
        self._awaited: set[int] = set()

    def expect(self, step: int) -> None:
        """The checkpoint of ``step`` is being evaluated: it is kept until it has its score."""
        self._awaited.add(step)

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the score of ``step`` from its evaluation, if it is there.

        Raises:
            HostError: the disk is full, there is no permission, or the like.
        """
        self._awaited.discard(step)
        if self._metric in metrics:
            self._write(self._scores | {step: metrics[self._metric]})

    def forget(self, *, after_step: int) -> None:
        """Forget the scores of later steps, which will be done again.

        Raises:
            HostError: the disk is full, there is no permission, or the like.
        """
        kept = {step: score for step, score in self._scores.items() if step <= after_step}
        if kept != self._scores:
            self._write(kept)

    def kept(self, steps: Iterable[int]) -> frozenset[int]:
        """Those of ``steps`` that are worth keeping; of equal scores the later one."""
        present = set(steps)
        rated = sorted(present & self._scores.keys(), key=lambda step: (self._scores[step], step))
        best = rated[-self._count :] if self._count else []
        return frozenset({*best, *(present & self._awaited)})

    def _write(self, scores: Mapping[int, float]) -> None:
        temporary = self._path.with_suffix(".tmp")
        wire = {"metric": self._metric, "scores": {str(step): scores[step] for step in scores}}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(orjson.dumps(wire))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write the scores") from error
        self._scores = dict(scores)


def best_step(folder: Path, steps: Iterable[int]) -> int | None:
    """The one of ``steps`` that did best, the later of equals; ``None``: no score is known.

    Args:
        folder: of the run's checkpoints.
        steps: to choose from.

    Raises:
        CheckpointError: the scores cannot be read.
    """
    found = _read(folder / _NAME)
    scores = found.scores if found else {}
    return max(scores.keys() & set(steps), key=lambda step: (scores[step], step), default=None)


def _read(path: Path) -> _Scores | None:
    try:
        return _Scores.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CheckpointError(
            f"cannot read {path}: {reason}", hint="without the file no checkpoint has a score"
        ) from error
