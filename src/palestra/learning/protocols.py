"""What the training loop needs from the parts around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from palestra.learning.rollouts.batch import StepBatch
from palestra.learning.rollouts.scheduler import SchedulerState
from palestra.records import Group


class Learner(Protocol):
    """Turns groups into new weights; its methods block."""

    @property
    def version(self) -> int:
        """Version of the weights; rises by one with each step."""
        ...

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Train on groups once and return metrics."""
        ...

    @property
    def ratios(self) -> Mapping[str, Sequence[float]]:
        """Of the last step, by rollout: the importance ratio of each id that was trained on.

        In the order of the rollout's paths; rollouts that gave no row are not in there.
        """
        ...

    def save_weights(self, folder: Path) -> None:
        """Write the weights as a folder that appears whole, replacing what was there."""
        ...


LearnerT = TypeVar("LearnerT", bound=Learner)
LearnerT_contra = TypeVar("LearnerT_contra", bound=Learner, contravariant=True)


class WeightPublisher(Protocol):
    """Serves weights to whoever samples; an engine is one."""

    @property
    def version(self) -> int:
        """Version of the weights that serve now."""
        ...

    async def publish(self, weights: Path, version: int) -> None:
        """Serve the weights of a folder as ``version``, which must rise.

        Raises:
            EngineError: they cannot be served.
        """
        ...


class Checkpointer(Protocol[LearnerT_contra]):
    """Keeps what is needed to go on in another process."""

    def save(self, step: int, learner: LearnerT_contra, progress: Mapping[str, Any], /) -> Path:
        """Write a checkpoint that is whole or not there; blocks.

        Raises:
            CheckpointError: it cannot be written.
        """
        ...


class BatchSource(Protocol):
    """Brings the groups of each step; the scheduler is one."""

    @property
    def state(self) -> SchedulerState:
        """Where it stands, enough to go on in another process."""
        ...

    async def next_batch(self, version: int) -> StepBatch:
        """Bring the groups of one step, to be trained on under the weights ``version``."""
        ...


class Evaluator(Protocol):
    """Measures the served policy on held-out tasks."""

    async def evaluate(
        self, *, step: int, version: int, background: bool = False
    ) -> Mapping[str, float]:
        """Return metrics; they are reported below ``eval/``.

        What was measured of this step before, in another process, may be returned again.

        Args:
            step: after which the policy is measured.
            version: of the weights that are served now.
            background: training goes on meanwhile, and newer weights will be served.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did.

    Attributes:
        step: number of the step, from 1.
        version: of the weights after it.
        trained: whether there was anything to train on.
        metrics: everything that was measured.
    """

    step: int
    version: int
    trained: bool
    metrics: Mapping[str, float]


class LoopObserver(Protocol):
    """Is told how the loop goes on; for terminals."""

    def on_step(self, report: StepReport) -> None:
        """A step is complete."""
        ...

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation after ``step`` steps is complete."""
        ...
