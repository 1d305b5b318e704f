from __future__ import annotations

import asyncio
import dataclasses
import gc

import pytest

from palestra.environment.grading.fake import ScriptedGrader
from palestra.environment.grading.reuse import ReusingGrader
from palestra.errors import GradingError
from palestra.records import Task, Verdict
from palestra.tasks.source import load_tasks


@pytest.fixture(scope="module")
def task() -> Task:
    return load_tasks("katas:train?seed=0&n=1&level=0")[0]


class Slow(ScriptedGrader):
    """Takes a turn of the loop, so that others can ask meanwhile."""

    async def grade(self, task: Task, patch: str) -> Verdict:
        await asyncio.sleep(0.01)
        return await super().grade(task, patch)


async def test_siblings_with_one_patch_are_graded_once(task: Task) -> None:
    inner = Slow(lambda _, patch: patch == "good")
    grader = ReusingGrader(inner)
    patches = ["good", "bad", "good", "good", "bad"]
    verdicts = await asyncio.gather(*(grader.grade(task, patch) for patch in patches))
    assert [v.resolved for v in verdicts] == [True, False, True, True, False]
    assert sorted(patch for _, patch in inner.graded) == ["bad", "good"]


async def test_another_task_of_the_same_name_is_graded_anew(task: Task) -> None:
    inner = ScriptedGrader(lambda *_: True)
    grader = ReusingGrader(inner)
    await grader.grade(task, "x")
    await grader.grade(dataclasses.replace(task, eval_script="exit 1"), "x")
    assert len(inner.graded) == 2


async def test_a_failure_is_not_remembered(task: Task) -> None:
    failures = [GradingError("the sandbox broke")]

    def resolves(_: Task, __: str) -> bool:
        if failures:
            raise failures.pop()
        return True

    grader = ReusingGrader(ScriptedGrader(resolves))
    with pytest.raises(GradingError):
        await grader.grade(task, "x")
    assert (await grader.grade(task, "x")).resolved


async def test_who_waits_goes_on_when_the_first_is_cancelled(task: Task) -> None:
    inner = Slow(lambda *_: True)
    grader = ReusingGrader(inner)
    first, second = (asyncio.create_task(grader.grade(task, "x")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).resolved
    assert first.cancelled()


async def test_memory_is_bounded(task: Task) -> None:
    inner = ScriptedGrader(lambda *_: True)
    grader = ReusingGrader(inner, max_verdicts=2)
    for patch in ("a", "b", "a", "c", "a", "b"):
        await grader.grade(task, patch)
    assert [patch for _, patch in inner.graded] == ["a", "b", "c", "b"]
    gc.collect()
    assert not grader._locks
