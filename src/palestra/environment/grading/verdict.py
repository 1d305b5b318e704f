"""From test statuses to a verdict; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from palestra.environment.grading.log_parsers import LogParser, TestStatus
from palestra.environment.grading.markers import MarkedOutput
from palestra.environment.grading.sealed import SealedReport
from palestra.records import Task, TestSplit, Verdict

UNSIGNED = (
    "the log says that every test passed, but no test run signed that; rows with a runner of "
    "their own need grading.signed = false"
)
_GOOD = frozenset({TestStatus.PASSED, TestStatus.XFAIL})
_BAD = frozenset({TestStatus.FAILED, TestStatus.ERROR})


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


def judge_sealed(
    task: Task,
    report: SealedReport | None,
    *,
    parse: LogParser,
    output: MarkedOutput,
    log: str,
    duration_s: float,
) -> Verdict:
    """Judge a test run by its signed report.

    The log is what the code under test can write, so it decides nothing. But where it says
    that a test passed of which the report does not, or a canary passed, somebody tampered.
    A run that was cut short, by the clock or by itself, has no report: then the statuses of
    its log stand in the verdict, which is unresolved.
    """
    claimed = judge(
        task, parse(output.text), finished=output.finished, log=log, duration_s=duration_s
    )
    if report is None:
        findings = [UNSIGNED] if claimed.resolved else []
        return replace(claimed, resolved=False, tampered=bool(findings), findings=tuple(findings))
    seen = judge(task, parse(report.log), finished=output.finished, log=log, duration_s=duration_s)
    findings = [*report.findings, *_passing_canaries(report, seen), *_forged(seen, claimed)]
    return replace(
        seen,
        resolved=seen.resolved and not findings,
        tampered=bool(findings),
        findings=tuple(findings),
        signed=True,
    )


def _passing_canaries(report: SealedReport, seen: Verdict) -> Iterator[str]:
    if any(status in _GOOD for status in report.canaries):
        yield "a test passed that must not"
        return
    ran = report.canaries and all(status in _BAD for status in report.canaries)
    if seen.resolved and not report.is_spread and not ran:
        yield "a test did not run that must fail"


def _forged(seen: Verdict, claimed: Verdict) -> Iterator[str]:
    for split, other in (
        (seen.fail_to_pass, claimed.fail_to_pass),
        (seen.pass_to_pass, claimed.pass_to_pass),
    ):
        for test in sorted(set(split.failure) & set(other.success)):
            yield f"the log says that {test} passed, which the test run did not see"


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
    passed = {test: _status(test, statuses) in _GOOD for test in tests}
    return TestSplit(
        success=tuple(test for test in tests if passed[test]),
        failure=tuple(test for test in tests if not passed[test]),
    )


def _status(test: str, statuses: Mapping[str, str]) -> str | None:
    # Parsers end an id at its first blank, as most lists do; some lists have it whole.
    return statuses.get(test) or statuses.get(test.partition(" ")[0])
