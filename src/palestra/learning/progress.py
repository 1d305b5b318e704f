"""Where a run stands: what a checkpoint keeps beside the learner's own state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from palestra.errors import CheckpointError
from palestra.learning.rollouts.batch import StepBatch
from palestra.learning.rollouts.scheduler import SchedulerState


@dataclass(frozen=True, slots=True)
class IndexSet:
    """A set of integers as sorted, disjoint ranges, both ends included.

    Task indices are used up nearly in order, so a run of any length needs a few
    ranges only.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        flat = [end for ends in self.ranges for end in ends]
        gaps = zip(self.ranges, self.ranges[1:], strict=False)
        if flat != sorted(flat) or any(low <= high + 1 for (_, high), (low, _) in gaps):
            raise ValueError(f"not sorted disjoint ranges: {self.ranges}")

    def __contains__(self, index: int) -> bool:
        place = bisect_right(self.ranges, index, key=lambda ends: ends[0])
        return place > 0 and index <= self.ranges[place - 1][1]

    def __len__(self) -> int:
        return sum(high - low + 1 for low, high in self.ranges)

    def union(self, indices: Iterable[int]) -> IndexSet:
        """The set with ``indices`` in it too."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted([*self.ranges, *((i, i) for i in indices)]):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return IndexSet(tuple(merged))


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Progress:
    """Where a run stands after ``step`` steps.

    Attributes:
        step: steps done, with and without training.
        version: of the learner's weights.
        num_skipped: steps that found nothing to train on.
        used: task indices of all groups that a step used up. Each group belongs to one
            index and each rollout to one group, so nothing in here may come again.
        scheduler: where the task order stands and what is still out.
    """

    step: int = 0
    version: int = 0
    num_skipped: int = 0
    used: IndexSet = IndexSet()
    scheduler: SchedulerState = field(default_factory=SchedulerState)

    def claim(self, batch: StepBatch) -> IndexSet:
        """Take the groups of a batch into ``used``.

        Raises:
            RuntimeError: a group or a rollout comes a second time: a bug of ours, and
                better no step than one that trains on the same tokens twice.
        """
        seen: set[int] = set()
        for judged in batch.judged:
            index = judged.whole.task_index
            if index in self.used or index in seen:
                raise RuntimeError(f"group {judged.whole.group_id} comes a second time")
            seen.add(index)
        rollouts = [r.rollout_id for group in batch.groups for r in group.rollouts]
        if len(set(rollouts)) < len(rollouts):
            raise RuntimeError(f"a rollout is in the batch twice: {sorted(rollouts)}")
        return self.used.union(seen)

    def to_wire(self) -> dict[str, Any]:
        """The progress as JSON values."""
        wire: dict[str, Any] = _PROGRESS.dump_python(self, mode="json")
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Progress:
        """Read what :meth:`to_wire` wrote.

        Raises:
            CheckpointError: a key is missing, unknown or of another type.
        """
        try:
            return _PROGRESS.validate_python(dict(wire))
        except ValidationError as error:
            reasons = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
            )
            raise CheckpointError(f"the checkpoint's progress is not readable: {reasons}") from None


_PROGRESS = TypeAdapter(Progress)
