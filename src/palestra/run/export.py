"""``palestra export``: the model of a checkpoint as a Hugging Face folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from palestra.errors import CheckpointError, ConfigError
from palestra.learning.best import best_step
from palestra.learning.training import Checkpoint, CheckpointStore
from palestra.learning.training.folders import whole_folder
from palestra.run.directory import RunDirectory


def find_checkpoint(run: RunDirectory, *, step: int | None, best: bool) -> Checkpoint:
    """The checkpoint to export: of ``step``, the best of those that are kept, or the newest.

    Raises:
        ConfigError: there is no such run or checkpoint, or none has a score.
        CheckpointError: the checkpoint is torn.
    """
    if not run.recipe.exists():
        raise ConfigError(f"{run.root} is not a run directory: it has no recipe.toml")
    store = CheckpointStore(run.checkpoints, keep_last=1)
    steps = store.steps()
    if not steps:
        raise ConfigError(f"{run.root} has no checkpoint yet")
    if best:
        step = best_step(run.checkpoints, steps)
        if step is None:
            raise ConfigError(
                f"no checkpoint of {run.root} has a score",
                hint="checkpoints get one where tasks.heldout is evaluated; without --best "
                "the newest is taken",
            )
    if step is not None and step not in steps:
        raise ConfigError(f"there is no checkpoint of step {step}, only of {_words(steps)}")
    found = store.latest() if step is None else store.at(step)
    if found is None:
        raise CheckpointError(f"the checkpoint of step {step or steps[-1]} is torn")
    return found


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the model of a checkpoint to a folder that appears whole or not at all.

    Raises:
        ConfigError: something is there already.
        CheckpointError: the disk is full, there is no permission, or the like.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already", hint="name a folder that is not")
    with whole_folder(folder) as temporary:
        shutil.copytree(checkpoint.model, temporary, dirs_exist_ok=True)


def _words(steps: list[int]) -> str:
    return ", ".join(map(str, steps))
