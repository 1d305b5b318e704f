"""Reports of two graders on the same patches, side by side and test by test; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from palestra.records import Verdict

LISTS = ("FAIL_TO_PASS", "PASS_TO_PASS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What was graded."""

    instance_id: str
    variant: str  # gold, noop or half


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one grading said.

    Attributes:
        grader: who said it, and how.
        resolved: its word on the whole patch.
        listed: list and test → success, for the tests that the row lists.
        statuses: of every test that its parser saw.
    """

    grader: str
    resolved: bool
    listed: Mapping[tuple[str, str], bool]
    statuses: Mapping[str, str]


def of_verdict(grader: str, verdict: Verdict) -> Report:
    """Ours."""
    splits = dict(zip(LISTS, (verdict.fail_to_pass, verdict.pass_to_pass), strict=True))
    return Report(
        grader=grader,
        resolved=verdict.resolved,
        listed={
            (name, test): success
            for name, split in splits.items()
            for tests, success in ((split.success, True), (split.failure, False))
            for test in tests
        },
        statuses={test: str(status) for test, status in verdict.statuses.items()},
    )


def of_swebench(line: Mapping[str, Any]) -> tuple[Key, Report]:
    """The harness's, from a line of ``swebench_reports.py``."""
    report = line["report"] or {"resolved": False}
    splits = report.get("tests_status", {})
    listed = {
        (name, test): success == "success"
        for name in LISTS
        for success, tests in splits.get(name, {}).items()
        for test in tests
    }
    return (
        Key(instance_id=line["instance_id"], variant=line["variant"]),
        Report(
            grader=f"swebench {line['swebench']}",
            resolved=report["resolved"],
            listed=listed,
            statuses=line["statuses"],
        ),
    )


def differences(theirs: Report, ours: Report) -> tuple[str, ...]:
    """Where the reports differ, one line each; empty: they are equal, test by test.

    The harness lists no test where a log named none; that equals a report of ours in which
    every test failed.
    """
    lines = []
    there_listed = theirs.listed or dict.fromkeys(ours.listed, False)
    if theirs.resolved != ours.resolved:
        lines.append(f"resolved: {theirs.resolved} there, {ours.resolved} here")
    lines += _unlike(_words(there_listed), _words(ours.listed))
    listed = {test for _, test in ours.listed}
    lines += _unlike(_only(theirs.statuses, listed), _only(ours.statuses, listed))
    return tuple(lines)


def beside(theirs: Report, ours: Report) -> tuple[str, ...]:
    """Where they differ on what the row does not list, and the report does not depend on."""
    names = {*theirs.statuses, *ours.statuses} - {test for _, test in ours.listed}
    return tuple(_unlike(_only(theirs.statuses, names), _only(ours.statuses, names)))


def table(theirs: Mapping[Key, Report], ours: Mapping[Key, list[Report]]) -> str:
    """A line for each task and patch, in Markdown; the last column counts differences."""
    lines = [
        "| task | patch | swebench | ours | tests listed | tests seen | differences |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, there in theirs.items():
        here = ours.get(key, [])
        num = sum(len(differences(there, one)) for one in here)
        cells = (
            key.instance_id,
            key.variant,
            _verdicts([there]),
            _verdicts(here),
            str(len(there.listed)),
            str(len(there.statuses)),
            str(num),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _unlike(there: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys((*there, *here)):
        if there.get(name) != here.get(name):
            yield f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"


def _only(statuses: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {test: status for test, status in statuses.items() if test in names}


def _words(listed: Mapping[tuple[str, str], bool]) -> dict[str, str]:
    return {
        f"{name} {test}": "success" if success else "failure"
        for (name, test), success in listed.items()
    }


def _verdicts(reports: Iterable[Report]) -> str:
    """``6 resolved``, ``1 resolved, 1 unresolved`` and so on."""
    words = ["resolved" if one.resolved else "unresolved" for one in reports]
    counts = {word: words.count(word) for word in words}
    return ", ".join(f"{n} {word}" for word, n in counts.items())
