"""Checkpoints that are whole or not there: ``checkpoints/STEP/``.

::

    STEP/model/         Hugging Face folder: weights, config, tokenizer
    STEP/trainer.pt     the rest of the trainer (moments, generator, counts)
    STEP/progress.json  where the loop stood
    STEP/manifest.json  the size of each file above, to know a torn copy
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from palestra.errors import CheckpointError
from palestra.events import EventSink, NullEvents
from palestra.learning.best import BestCheckpoints
from palestra.learning.training.folders import TEMPORARY_PREFIX, discard_folder, whole_folder
from palestra.learning.training.trainer import Trainer

_MODEL, _STATE, _PROGRESS, _MANIFEST = "model", "trainer.pt", "progress.json", "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    step: int
    folder: Path
    progress: Mapping[str, Any]
    """What the loop gave when it was saved."""

    @property
    def model(self) -> Path:
        """Its Hugging Face folder."""
        return self.folder / _MODEL


class CheckpointStore:
    """The checkpoints of one run; one process at a time writes them.

    Args:
        folder: of the run's checkpoints; made when the first is saved.
        keep_last: how many of the newest are kept.
        best: says which others are kept; none: no others.
        events: told of saved (``checkpoint.saved``), pruned (``checkpoint.pruned``) and
            ignored (``checkpoint.ignored``, with the reason) checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        *,
        best: BestCheckpoints | None = None,
        events: EventSink | None = None,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; at least one checkpoint must stay")
        self._folder = folder
        self._keep_last = keep_last
        self._best = best
        self._events = events or NullEvents()

    def save(self, step: int, trainer: Trainer, progress: Mapping[str, Any]) -> Path:
        """Write ``STEP/`` and, once it is on the disk, remove older ones that need not be kept.

        Raises:
            CheckpointError: it cannot be written; all earlier checkpoints are still there.
        """
        target = self._folder / str(step)
        with whole_folder(target) as temporary:
            (temporary / _MODEL).mkdir()
            trainer.write_model(temporary / _MODEL)
            # Through a file of Python's: torch's own writer hides why a write failed.
            with (temporary / _STATE).open("wb") as file:
                torch.save(trainer.state_dict(), file)
            (temporary / _PROGRESS).write_bytes(orjson.dumps(dict(progress)))
            (temporary / _MANIFEST).write_bytes(orjson.dumps(_sizes(temporary)))
        self._events.emit("checkpoint.saved", step=step, path=str(target))
        self._prune()
        return target

    def latest(self) -> Checkpoint | None:
        """Find the newest whole checkpoint; unfinished and torn ones are ignored, and it is said.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        for step in reversed(self.steps()):
            folder = self._folder / str(step)
            try:
                return _open(step, folder)
            except (OSError, ValueError) as error:
                self._ignored(folder, str(error))
        return None

    def at(self, step: int) -> Checkpoint | None:
        """The whole checkpoint of a step; ``None``: there is none, or it is torn."""
        try:
            return _open(step, self._folder / str(step))
        except (OSError, ValueError):
            return None

    def load(self, checkpoint: Checkpoint, trainer: Trainer) -> None:
        """Put a trainer where the checkpoint was taken.

        Raises:
            CheckpointError: the checkpoint is broken or belongs to another model.
        """
        path = checkpoint.folder / _STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        trainer.load_weights(checkpoint.model)
        trainer.load_state_dict(state)

    def _prune(self) -> None:
        steps = self.steps()
        kept = self._best.kept(steps) if self._best is not None else frozenset()
        for step in steps[: -self._keep_last]:
            if step in kept:
                continue
            folder = self._folder / str(step)
            try:
                discard_folder(folder)
            except OSError as error:
                # The new checkpoint is safe; an old one too many is no reason to stop.
                self._ignored(folder, f"cannot be removed: {error.strerror}")
            else:
                self._events.emit("checkpoint.pruned", step=step, path=str(folder))
        for folder in self._folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or torn, in order.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        if not self._folder.is_dir():
            return []
        steps = []
        try:
            for path in self._folder.iterdir():
                if path.name.startswith(TEMPORARY_PREFIX):
                    self._ignored(path, "it was never finished")
                elif path.name.isdecimal():
                    steps.append(int(path.name))
        except OSError as error:
            raise CheckpointError(f"cannot read {self._folder}: {error.strerror}") from error
        return sorted(steps)

    def _ignored(self, folder: Path, reason: str) -> None:
        self._events.emit("checkpoint.ignored", path=str(folder), reason=reason)


def _open(step: int, folder: Path) -> Checkpoint:
    manifest = orjson.loads((folder / _MANIFEST).read_bytes())
    found = _sizes(folder)
    found.pop(_MANIFEST, None)
    if found != manifest:
        torn = sorted(set(manifest.items()) ^ set(found.items()))
        raise ValueError(f"files are missing, torn or foreign: {sorted({n for n, _ in torn})}")
    return Checkpoint(
        step=step,
        folder=folder,
        progress=orjson.loads((folder / _PROGRESS).read_bytes()),
    )


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
