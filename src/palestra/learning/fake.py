"""Public fakes of learner, publisher and checkpoints for tests and dry runs: no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from palestra.learning.rollouts.fake import FakeGateway
from palestra.records import Group


class FakeLearner:
    """Learns nothing but remembers what it was given.

    Attributes:
        trained: ids of all rollouts that were trained on, in order.
    """

    def __init__(self) -> None:
        self.trained: list[str] = []
        self._version = 0

    @property
    def version(self) -> int:
        """Steps done."""
        return self._version

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Remember the rollouts and raise the version."""
        ids = [rollout.rollout_id for group in groups for rollout in group.rollouts]
        self.trained += ids
        self._version += 1
        return {"train/rollouts": float(len(ids))}

    @property
    def ratios(self) -> Mapping[str, Sequence[float]]:
        """None: it computes nothing."""
        return {}

    def save_weights(self, folder: Path) -> None:
        """Write a folder with the version in it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text(str(self._version), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {"version": self._version, "trained": list(self.trained)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._version = int(state["version"])
        self.trained = list(state["trained"])


class FakePublisher:
    """Makes a fake gateway sample under new versions, and holds publishing to its contract.

    Attributes:
        published: all versions, in order.
    """

    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway
        self.published: list[int] = []

    @property
    def version(self) -> int:
        """Version that the gateway samples under."""
        return self._gateway.version

    async def publish(self, weights: Path, version: int) -> None:
        """Serve ``version`` from now on.

        Raises:
            ValueError: it does not rise, or the folder holds other weights.
        """
        if version <= self.version:
            raise ValueError(f"version {version} after {self.version}")
        if (weights / "version").read_text(encoding="utf-8") != str(version):
            raise ValueError(f"{weights} does not hold version {version}")
        self._gateway.version = version
        self.published.append(version)


class FolderCheckpoints:
    """Checkpoints of a :class:`FakeLearner`: one JSON file each.

    Args:
        folder: of the files; made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, learner: FakeLearner, progress: Mapping[str, Any], /) -> Path:
        """Write the checkpoint of a step."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"{step}.json"
        temporary = target.with_suffix(".tmp")
        temporary.write_bytes(
            orjson.dumps({"learner": learner.state_dict(), "progress": dict(progress)})
        )
        return temporary.replace(target)

    def latest(self, learner: FakeLearner) -> dict[str, Any] | None:
        """Put ``learner`` where the newest checkpoint is and return its progress, if any."""
        steps = [int(path.stem) for path in self._folder.glob("*.json")]
        if not steps:
            return None
        saved = orjson.loads((self._folder / f"{max(steps)}.json").read_bytes())
        learner.load_state_dict(saved["learner"])
        progress: dict[str, Any] = saved["progress"]
        return progress
