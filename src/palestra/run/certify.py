"""``palestra certify``: grades nothing and the gold patch of each task, and keeps what came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    Conditions,
    certificate,
    graded,
    row_hash,
)
from palestra.environment.grading.protocol import Grader
from palestra.errors import InfraError
from palestra.records import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How tasks are certified.

    Attributes:
        conditions: under which the grader grades.
        gold_runs: how often the gold patch is graded, to find tests that flake.
        max_s: what one grading may take; ``None``: anything.
        concurrency: tasks at once.
    """

    conditions: Conditions
    gold_runs: int = 3
    max_s: float | None = None
    concurrency: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertain:
    """A task that could not be graded; it has no certificate and is tried anew next time."""

    instance_id: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certification:
    """What became of all tasks, in their order."""

    certificates: tuple[Certificate, ...]
    uncertain: tuple[Uncertain, ...]


def known(file: CertificateFile, tasks: Sequence[Task], plan: Plan) -> dict[str, Certificate]:
    """By id, what the file already says about tasks under the same conditions.

    A certificate from fewer gold runs, or of another ``max_s``, does not count.
    """
    hashes = {task.instance_id: row_hash(task) for task in tasks}
    return {
        one.instance_id: one
        for one in file.read()
        if one.row_sha256 == hashes.get(one.instance_id)
        and one.conditions == plan.conditions
        and one.max_s == plan.max_s
        and one.num_gold_runs >= plan.gold_runs
    }


async def certify(
    grader: Grader,
    tasks: Sequence[Task],
    file: CertificateFile,
    plan: Plan,
    *,
    on_task: Callable[[Certificate | Uncertain], None],
) -> Certification:
    """Certify the tasks that have no certificate yet, each written as it is made.

    Args:
        grader: which must not reuse verdicts.
        tasks: all of them; those that ``file`` knows are not graded again.
        file: read first, then written to.
        plan: how.
        on_task: told of each task as it is done, known ones too.
    """
    done: dict[str, Certificate | Uncertain] = dict(known(file, tasks, plan))
    for one in done.values():
        on_task(one)
    slots = asyncio.Semaphore(plan.concurrency)

    async def certified(task: Task) -> None:
        async with slots:
            one = await _certified(grader, task, plan)
        if isinstance(one, Certificate):
            file.append([one])
        done[task.instance_id] = one
        on_task(one)

    async with asyncio.TaskGroup() as group:
        for task in tasks:
            if task.instance_id not in done:
                group.create_task(certified(task))
    results = [done[task.instance_id] for task in tasks]
    return Certification(
        certificates=tuple(r for r in results if isinstance(r, Certificate)),
        uncertain=tuple(r for r in results if isinstance(r, Uncertain)),
    )


async def _certified(grader: Grader, task: Task, plan: Plan) -> Certificate | Uncertain:
    patches = [("noop", ""), *[("gold", task.gold_patch)] * plan.gold_runs]
    try:
        # One after the other: at once they would share the machine, and seem slower.
        runs = [graded(name, await grader.grade(task, patch)) for name, patch in patches]
    except InfraError as error:
        said = f"{type(error).__name__}: {error.message}"
        return Uncertain(instance_id=task.instance_id, error=said)
    return certificate(task, plan.conditions, runs, max_s=plan.max_s)
