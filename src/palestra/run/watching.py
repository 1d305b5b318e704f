"""What a run tells whoever watches it; the terminal implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from palestra.learning.evaluations import EvaluationPlan
from palestra.learning.protocols import StepReport
from palestra.records import Rollout


class Watcher(Protocol):
    """Is told how a run goes on; every method returns at once."""

    def say(self, text: str) -> None:
        """Something begins that takes a while."""
        ...

    def on_warmup(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step of the warm start is complete."""
        ...

    def on_episode_begin(self, rollout_id: str) -> None:
        """An episode of training got its place."""
        ...

    def on_episode(self, rollout: Rollout) -> None:
        """An episode of training has ended."""
        ...

    def on_step(self, report: StepReport) -> None:
        """A training step is complete."""
        ...

    def on_evaluation_begin(self, plan: EvaluationPlan, num_episodes: int) -> None:
        """A held-out evaluation in one mode begins."""
        ...

    def on_evaluation_episode(self, rollout: Rollout) -> None:
        """An episode of the evaluation that began last has ended."""
        ...

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """A held-out evaluation is complete."""
        ...
