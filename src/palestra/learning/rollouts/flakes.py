"""Tests that do not repeat, seen in the verdicts of one group; pure functions.

A certified task can still flake: rarely, or only while the machine is busy. Training sees many
more gradings than the certificate did, and two of them say so for certain:

* the same patch was graded twice, and a test of the task ended differently;
* nothing was changed, and a test that must hold (PASS_TO_PASS) did not.

The task is then quarantined: no reward of its tests can be believed. Code that behaves differently
each time looks the same as tests that do; a policy cannot gain by it, since a quarantined task
gives no reward at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from palestra.records import Group, Verdict


def flaky_tests(group: Group) -> tuple[str, ...]:
    """The tests of the group's task that did not repeat, sorted."""
    graded: dict[str, list[Verdict]] = {}
    for rollout in group.rollouts:
        patch, verdict = rollout.episode.patch, rollout.episode.verdict
        # Tests that somebody has forged, or that did not run, are no tests.
        if patch is None or verdict is None or verdict.tampered or not verdict.patch_applied:
            continue
        graded.setdefault(patch.strip(), []).append(verdict)
    return tuple(sorted({*_differing(graded), *_broken_by_nothing(graded.get("", []))}))


def _differing(graded: dict[str, list[Verdict]]) -> Iterator[str]:
    for verdicts in graded.values():
        failures: list[set[str]] = [_failures(verdict) for verdict in verdicts]
        first, *others = failures
        yield from first.union(*others) - first.intersection(*others)


def _broken_by_nothing(verdicts: list[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        yield from verdict.pass_to_pass.failure


def _failures(verdict: Verdict) -> set[str]:
    return {*verdict.fail_to_pass.failure, *verdict.pass_to_pass.failure}
