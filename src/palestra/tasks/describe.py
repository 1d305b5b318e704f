"""What is in a list of tasks, for the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from palestra.records import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """Counts over a list of tasks; the pairs are ordered by count, greatest first."""

    num_tasks: int
    repos: tuple[tuple[str, int], ...]
    images: tuple[tuple[str, int], ...]
    splits: tuple[tuple[str, int], ...]
    num_fail_to_pass: int
    num_pass_to_pass: int
    num_without_gold_patch: int

    def lines(self) -> tuple[str, ...]:
        """The summary as text, one line an entry."""
        tests = f"{self.num_fail_to_pass} must flip, {self.num_pass_to_pass} must hold"
        lines = [f"{self.num_tasks} tasks, {len(self.images)} images", f"tests: {tests}"]
        lines += [f"{repo}: {count}" for repo, count in self.repos]
        if self.num_without_gold_patch:
            lines.append(f"without a gold patch: {self.num_without_gold_patch}")
        return tuple(lines)


def summarize(tasks: Sequence[Task]) -> TaskSummary:
    """Count what ``tasks`` holds."""
    return TaskSummary(
        num_tasks=len(tasks),
        repos=_ranked(Counter(task.repo for task in tasks)),
        images=_ranked(Counter(task.image for task in tasks)),
        splits=_ranked(Counter(f"{task.subset}/{task.split}" for task in tasks)),
        num_fail_to_pass=sum(len(task.fail_to_pass) for task in tasks),
        num_pass_to_pass=sum(len(task.pass_to_pass) for task in tasks),
        num_without_gold_patch=sum(not task.gold_patch for task in tasks),
    )


def _ranked(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
