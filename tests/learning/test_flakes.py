"""Tests of a task that do not repeat: how they are seen, and what becomes of the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from rollout_makers import make_group, make_scheduler

from palestra.config import RolloutsSection
from palestra.events import MemoryEvents
from palestra.learning.metrics import batch_metrics
from palestra.learning.rollouts.fake import ScriptedEpisode
from palestra.learning.rollouts.filters import DropReason, judge
from palestra.learning.rollouts.flakes import flaky_tests
from palestra.records import Group, Outcome, Task, TestSplit, Verdict

FIX, WRONG = "diff --git a/x b/x\n+fix\n", "diff --git a/x b/x\n+wrong\n"


def verdict(*failed: str, **changes: bool) -> Verdict:
    """Of a task whose test ``flips`` must flip and ``holds`` and ``stays`` must hold."""

    def split(*tests: str) -> TestSplit:
        return TestSplit(
            success=tuple(t for t in tests if t not in failed),
            failure=tuple(t for t in tests if t in failed),
        )

    fields = {"resolved": not failed, "patch_applied": True, "tampered": False} | changes
    return Verdict(
        fail_to_pass=split("flips"),
        pass_to_pass=split("holds", "stays"),
        statuses={},
        log="",
        duration_s=0.1,
        **fields,
    )


def group_of(*graded: tuple[str | None, Verdict | None]) -> Group:
    plain = make_group([Outcome.UNSOLVED] * len(graded))
    return dataclasses.replace(
        plain,
        rollouts=tuple(
            dataclasses.replace(
                rollout, episode=dataclasses.replace(rollout.episode, patch=patch, verdict=said)
            )
            for rollout, (patch, said) in zip(plain.rollouts, graded, strict=True)
        ),
    )


@pytest.mark.parametrize(
    ("graded", "flaky"),
    [
        ([(FIX, verdict()), (WRONG, verdict("flips", "holds"))], []),
        ([(FIX, verdict()), (FIX, verdict())], []),
        ([(FIX, verdict()), (FIX, verdict("holds"))], ["holds"]),
        ([(FIX, verdict("flips")), (FIX + "\n", verdict("stays"))], ["flips", "stays"]),
        ([("", verdict("flips")), ("", verdict("flips"))], []),
        ([("", verdict("flips", "stays")), (FIX, verdict())], ["stays"]),
        # What is no verdict of the task's tests on a patch says nothing of them.
        ([(FIX, verdict()), (FIX, verdict("holds", patch_applied=False))], []),
        ([(FIX, verdict()), (FIX, verdict("holds", tampered=True))], []),
        ([(None, None), (FIX, verdict()), ("", None)], []),
    ],
)
def test_what_does_not_repeat(
    graded: Sequence[tuple[str | None, Verdict | None]], flaky: list[str]
) -> None:
    group = group_of(*graded)
    assert list(flaky_tests(group)) == flaky
    section = RolloutsSection(drop_equal_groups=False)
    judged = judge(group, version=0, section=section)
    assert (judged.reason is DropReason.FLAKY) == bool(flaky)
    assert list(judged.flaky_tests) == flaky


def flaking(task: Task, number: int) -> ScriptedEpisode:
    """Task 0 solves and fails with one patch; the others with two."""
    solved = bool(number % 2)
    return ScriptedEpisode(
        outcome=Outcome.SOLVED if solved else Outcome.UNSOLVED,
        patch=FIX if task.instance_id == "task-0" or solved else WRONG,
        verdict=verdict(*([] if solved else ["holds"])),
    )


async def test_a_task_that_flakes_gives_no_data_and_is_recorded() -> None:
    events = MemoryEvents()
    scheduler, _, environment = make_scheduler(flaking, num_tasks=3, events=events)
    async with scheduler:
        batches = [await scheduler.next_batch(version) for version in range(3)]
    trained = {group.instance_id for batch in batches for group in batch.groups}
    assert trained == {"task-1", "task-2"}
    assert environment.started.count("task-0") == 2
    (told,) = (event.fields for event in events.of_kind("task.quarantined"))
    assert told["instance_id"] == "task-0"
    assert list(told["flaky_tests"]) == ["holds"]
    assert batch_metrics(batches[-1])["integrity/quarantined"] == 1.0
    assert batches[0].drop_reasons == {DropReason.FLAKY: 1}


async def test_quarantine_survives_a_resume() -> None:
    scheduler, _, _ = make_scheduler(flaking, num_tasks=3)
    async with scheduler:
        await scheduler.next_batch(0)
        state = scheduler.state
    assert state.quarantined == ("task-0",)
    resumed, _, environment = make_scheduler(flaking, num_tasks=3, state=state)
    async with resumed:
        for version in range(1, 4):
            await resumed.next_batch(version)
    assert "task-0" not in environment.started


async def test_groups_of_the_task_that_were_judged_before_are_dropped_too() -> None:
    def late(task: Task, number: int) -> ScriptedEpisode:
        # The first group of task 0 repeats; the second, in the same step, does not.
        script = flaking(task, number)
        if task.instance_id == "task-0" and number < 2:
            return dataclasses.replace(script, patch=FIX if number else WRONG)
        return dataclasses.replace(script, delay_s=0.05)

    scheduler, _, _ = make_scheduler(late, num_tasks=2, groups_per_step=4)
    async with scheduler:
        batch = await scheduler.next_batch(0)
    assert {group.instance_id for group in batch.groups} == {"task-1"}
    assert batch.drop_reasons == {DropReason.FLAKY: 2}
    assert len(batch.groups) == 4
