"""Advantages, losses, batching, the trainer and its checkpoints.

Importing this package costs nothing: PyTorch comes in with the first name that is
taken from it, and its absence shows there as :class:`~palestra.errors.MissingExtra`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from palestra.errors import MissingExtra

if TYPE_CHECKING:
    from palestra.learning.training.checkpoint import Checkpoint, CheckpointStore
    from palestra.learning.training.trainer import Trainer
    from palestra.learning.training.warmstart import warm_start

__all__ = ["Checkpoint", "CheckpointStore", "Trainer", "warm_start"]

_HOMES = {
    "Checkpoint": "checkpoint",
    "CheckpointStore": "checkpoint",
    "Trainer": "trainer",
    "warm_start": "warmstart",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        missing = (error.name or "torch").partition(".")[0]
        if missing == "palestra":  # a mistake of ours, not of the installation
            raise
        raise MissingExtra.named("train", needed_for="training", module=missing) from error
    return getattr(home, name)
