"""``palestra certify``: grades nothing and the gold patch of each task, and keeps what came."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from palestra.environment.grading.bench import Bench
from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    Conditions,
    certificate,
    row_hash,
)
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


class _Known:
    """The certificates of a file, by row; the newest of equal ones counts."""

    def __init__(self, file: CertificateFile, plan: Plan) -> None:
        self._plan = plan
        self._by_row: dict[tuple[str, str], Certificate] = {
            (one.row_sha256, one.image_identity): one
            for one in file.read()
            if one.conditions == plan.conditions
        }

    def find(self, task: Task, identity: str) -> Certificate | None:
        """The one that says all that the plan asks for."""
        one = self._by_row.get((row_hash(task), identity))
        if one is None or one.max_s != self._plan.max_s:
            return None
        return one if one.num_gold_runs >= self._plan.gold_runs else None


async def certify(
    bench: Bench,
    tasks: Sequence[Task],
    file: CertificateFile,
    plan: Plan,
    *,
    on_task: Callable[[Certificate | Uncertain], None],
) -> Certification:
    """Certify the tasks that have no certificate yet, each written as it is made.

    A certificate of another row, image or grader, under other conditions, from fewer gold
    runs or of another ``max_s`` does not count.

    Args:
        bench: grades.
        tasks: all of them; those that ``file`` knows are not graded again.
        file: read first, then written to.
        plan: how.
        on_task: told of each task as it is done, known ones too.
    """
    known = _Known(file, plan)
    slots = asyncio.Semaphore(plan.concurrency)

    async def certified(task: Task) -> Certificate | Uncertain:
        async with slots:
            try:
                identity = await bench.identify(task)
                one = known.find(task, identity)
                if one is None:
                    one = await _graded(bench, task, identity, plan)
                    file.append([one])
            except InfraError as error:
                failed = Uncertain(instance_id=task.instance_id, error=_said(error))
                on_task(failed)
                return failed
        on_task(one)
        return one

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(certified(task)) for task in tasks]
    results = [one.result() for one in running]
    return Certification(
        certificates=tuple(r for r in results if isinstance(r, Certificate)),
        uncertain=tuple(r for r in results if isinstance(r, Uncertain)),
    )


async def _graded(bench: Bench, task: Task, identity: str, plan: Plan) -> Certificate:
    patches = [("noop", ""), *[("gold", task.gold_patch)] * plan.gold_runs]
    # One after the other: at once they would share the machine, and seem slower.
    runs = [await bench.grade(task, name, patch) for name, patch in patches]
    return certificate(task, plan.conditions, runs, image_identity=identity, max_s=plan.max_s)


def _said(error: InfraError) -> str:
    return f"{type(error).__name__}: {error.message}"
