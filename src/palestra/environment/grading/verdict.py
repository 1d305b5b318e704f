"""From test statuses to a verdict; pure."""

from __future__ import annotations

from collections.abc import Mapping

from palestra.environment.grading.log_parsers import TestStatus
from palestra.records import Task, TestSplit, Verdict

_GOOD = frozenset({TestStatus.PASSED, TestStatus.XFAIL})


def judge(
    task: Task, statuses: Mapping[str, str], *, finished: bool, log: str, duration_s: float
) -> Verdict:
    """Judge a test run: resolved when every listed test passed.

    PASSED and XFAIL count as passed, everything else as failed, a test that the
    log does not name too. A run that did not come to its end is never resolved.
    """
    fail_to_pass = _split(task.fail_to_pass, statuses)
    pass_to_pass = _split(task.pass_to_pass, statuses)
    return Verdict(
        resolved=finished and not fail_to_pass.failure and not pass_to_pass.failure,
        patch_applied=True,
        fail_to_pass=fail_to_pass,
        pass_to_pass=pass_to_pass,
        statuses=statuses,
        log=log,
        duration_s=duration_s,
    )


def unapplied(task: Task, *, log: str, duration_s: float) -> Verdict:
    """The verdict on a patch that could not be applied: an honest unsolved."""
    return Verdict(
        resolved=False,
        patch_applied=False,
        fail_to_pass=_split(task.fail_to_pass, {}),
        pass_to_pass=_split(task.pass_to_pass, {}),
        statuses={},
        log=log,
        duration_s=duration_s,
    )


def _split(tests: tuple[str, ...], statuses: Mapping[str, str]) -> TestSplit:
    return TestSplit(
        success=tuple(test for test in tests if statuses.get(test) in _GOOD),
        failure=tuple(test for test in tests if statuses.get(test) not in _GOOD),
    )
