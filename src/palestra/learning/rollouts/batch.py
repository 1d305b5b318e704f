"""What one step trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from palestra.learning.rollouts.filters import DropReason, JudgedGroup
from palestra.records import Group, Outcome, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """All groups of one step, by task index, and what became of each.

    Attributes:
        version: of the weights that the groups were judged under.
        judged: every group that this step used up, kept or dropped.
        wait_s: seconds that the step waited for its groups.
        num_quarantined: tasks in quarantine since the run began.
    """

    version: int
    judged: tuple[JudgedGroup, ...]
    wait_s: float
    num_quarantined: int = 0

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups to train on, with their usable rollouts only; may be empty."""
        return tuple(group.kept for group in self.judged if group.kept is not None)

    @property
    def dropped(self) -> tuple[JudgedGroup, ...]:
        """The groups that are not trained on."""
        return tuple(group for group in self.judged if group.kept is None)

    @property
    def drop_reasons(self) -> Counter[DropReason]:
        """How many groups were dropped for each reason."""
        return Counter(group.reason for group in self.judged if group.reason is not None)

    def rollouts(self) -> Iterator[Rollout]:
        """Yield every rollout, those of dropped groups and aborted ones too."""
        for group in self.judged:
            yield from group.whole.rollouts

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How many episodes ended in each way."""
        return Counter(rollout.episode.outcome for rollout in self.rollouts())

    @property
    def infra_share(self) -> float | None:
        """Share of the episodes that the infrastructure failed; ``None`` without episodes."""
        outcomes = self.outcomes
        total = outcomes.total()
        return outcomes[Outcome.INFRA_ERROR] / total if total else None
