"""``rollouts/STEP.jsonl.zst``: every rollout of a step, one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palestra.errors import HostError
from palestra.learning.rollouts.filters import DropReason, JudgedGroup
from palestra.learning.rollouts.json_lines import (
    SUFFIX,
    discard,
    read_json_lines,
    write_json_lines,
)
from palestra.records import Rollout
from palestra.wire import episode_from_wire, episode_to_wire, trace_from_wire, trace_to_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRollout:
    """A rollout as it was stored.

    Attributes:
        step: that used it up.
        group_id: of its group.
        task_index: of its group.
        trained: whether it was handed to the trainer.
        drop_reason: why its group was dropped, if it was.
        rollout: itself, with ids, logprobs, versions and verdict.
        ratios: the importance ratio of each id that was trained on, path after path, the
            trainer's likelihood over the engine's; ``None`` where none was.
    """

    step: int
    group_id: str
    task_index: int
    trained: bool
    drop_reason: DropReason | None
    rollout: Rollout
    ratios: tuple[float, ...] | None = None


class RolloutStore:
    """The rollout files of one run; a file is whole or not there.

    Args:
        folder: ``rollouts/`` of the run; made when the first step is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int) -> Path:
        """Where the rollouts of ``step`` lie."""
        return self._folder / f"{step}{SUFFIX}"

    def steps(self) -> list[int]:
        """The steps that have a file, in order."""
        names = (p.name.removesuffix(SUFFIX) for p in self._folder.glob(f"*{SUFFIX}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def write(
        self,
        step: int,
        judged: Iterable[JudgedGroup],
        ratios: Mapping[str, Sequence[float]] | None = None,
    ) -> Path:
        """Write all rollouts of a step, replacing nothing until they are on the disk.

        Args:
            step: that used them up.
            judged: its groups.
            ratios: by rollout, the importance ratio of each id that was trained on.

        Raises:
            HostError: the disk is full, there is no permission, or the like.
        """
        return write_json_lines(
            self.path(step), _lines(step, judged, ratios or {}), doing="cannot write the rollouts"
        )

    def read(self, step: int) -> Iterator[StoredRollout]:
        """Yield the rollouts of a step.

        Raises:
            HostError: there is no such file, or it cannot be read.
        """
        for line in read_json_lines(self.path(step), doing="cannot read the rollouts"):
            yield _stored(line)

    def set_aside(self, *, after_step: int) -> list[Path]:
        """Rename the files of later steps to ``*.discarded``, since those will be done again.

        Returns:
            Their new paths.

        Raises:
            HostError: a file cannot be renamed.
        """
        try:
            for leftover in self._folder.glob("*.tmp"):
                leftover.unlink()
            return [discard(self.path(s)) for s in self.steps() if s > after_step]
        except OSError as error:
            raise HostError.from_os(error, doing="cannot set rollouts aside") from error


def _lines(
    step: int, judged: Iterable[JudgedGroup], ratios: Mapping[str, Sequence[float]]
) -> Iterator[dict[str, Any]]:
    for group in judged:
        trained = {r.rollout_id for r in group.kept.rollouts} if group.kept else set()
        for rollout in group.whole.rollouts:
            yield {
                "step": step,
                "group_id": group.whole.group_id,
                "task_index": group.whole.task_index,
                "rollout_id": rollout.rollout_id,
                "trained": rollout.rollout_id in trained,
                "drop_reason": group.reason,
                "reward": rollout.reward,
                "episode": episode_to_wire(rollout.episode),
                "trace": trace_to_wire(rollout.trace),
                "ratios": _rounded(ratios.get(rollout.rollout_id)),
            }


def _rounded(ratios: Sequence[float] | None) -> list[float] | None:
    # To be looked at, not to be computed with.
    return None if ratios is None else [round(ratio, 5) for ratio in ratios]


def _stored(line: dict[str, Any]) -> StoredRollout:
    return StoredRollout(
        step=line["step"],
        group_id=line["group_id"],
        task_index=line["task_index"],
        trained=line["trained"],
        drop_reason=DropReason(line["drop_reason"]) if line["drop_reason"] else None,
        rollout=Rollout(
            rollout_id=line["rollout_id"],
            episode=episode_from_wire(line["episode"]),
            trace=trace_from_wire(line["trace"]),
        ),
        ratios=tuple(line["ratios"]) if line.get("ratios") is not None else None,
    )
