"""A public fake: a grader that says what it is told."""

from __future__ import annotations

from collections.abc import Callable

from palestra.records import Task, TestSplit, Verdict


class ScriptedGrader:
    """Gives the verdicts of a script and remembers what it was asked.

    Args:
        resolves: whether a patch solves a task; may raise what a grader raises.

    Attributes:
        graded: instance ids and patches in the order in which they came.
    """

    def __init__(self, resolves: Callable[[Task, str], bool]) -> None:
        self._resolves = resolves
        self.graded: list[tuple[str, str]] = []

    async def grade(self, task: Task, patch: str) -> Verdict:
        """Say what the script says, for every test of the task alike."""
        self.graded.append((task.instance_id, patch))
        return verdict_of(task, resolved=self._resolves(task, patch))


def verdict_of(task: Task, *, resolved: bool) -> Verdict:
    """A verdict in which all FAIL_TO_PASS tests went one way and the others held."""
    flipped = task.fail_to_pass
    return Verdict(
        resolved=resolved,
        patch_applied=True,
        fail_to_pass=TestSplit(
            success=flipped if resolved else (), failure=() if resolved else flipped
        ),
        pass_to_pass=TestSplit(success=task.pass_to_pass, failure=()),
        statuses=dict.fromkeys(flipped, "PASSED" if resolved else "FAILED"),
        log="",
        duration_s=0.0,
    )
