"""``weights/VERSION``: the folders that weights are published from."""

from __future__ import annotations

import shutil
from pathlib import Path

from palestra.errors import HostError
from palestra.learning.protocols import Learner

# The newest, and the one before it, which an engine may still be reading.
_KEPT = 2


class WeightFolders:
    """Saves weights to be published and removes those that nobody reads any more.

    Args:
        folder: ``weights/`` of the run; made when the first are saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, learner: Learner) -> Path:
        """Write the learner's weights to ``VERSION/``; blocks.

        Raises:
            CheckpointError: they cannot be written.
            HostError: the folder cannot be made.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot make the folder of weights") from error
        target = self._folder / str(learner.version)
        learner.save_weights(target)
        return target

    def prune(self, newest: int) -> None:
        """Remove all versions but ``newest`` and the one before it; blocks.

        Versions above ``newest`` are of a life that ended before its checkpoint.
        """
        versions = sorted(int(p.name) for p in self._folder.glob("*") if p.name.isdecimal())
        kept = [version for version in versions if version <= newest][-_KEPT:]
        for version in versions:
            if version not in kept:
                # Space, not truth: a folder that stays behind does no harm.
                shutil.rmtree(self._folder / str(version), ignore_errors=True)
