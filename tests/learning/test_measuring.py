from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rollout_makers import make_scheduler, until

from palestra.config import CheckpointSection, EvaluationSection
from palestra.errors import InfraError
from palestra.events import MemoryEvents
from palestra.learning.best import BestCheckpoints
from palestra.learning.evaluations import Evaluation, EvaluationPlan, EvaluationStore
from palestra.learning.fake import FakeLearner, FakePublisher, FolderCheckpoints
from palestra.learning.loop import TrainingLoop
from palestra.learning.progress import Progress
from palestra.learning.rollouts.fake import ScriptedEpisode
from palestra.learning.rollouts.scheduler import SchedulerState
from palestra.records import Outcome, Task


def with_signal(task: Task, number: int) -> ScriptedEpisode:
    return ScriptedEpisode(outcome=Outcome.SOLVED if number % 2 else Outcome.UNSOLVED)


class GatedEvaluator:
    """Ends its evaluations of the steps named when it is told to, and others at once."""

    def __init__(self, *held: int, error: Exception | None = None) -> None:
        self.held = set(held)
        self.go_on = asyncio.Event()
        self.error = error
        self.seen: list[tuple[int, int, bool]] = []
        self.ended: list[int] = []

    async def evaluate(
        self, *, step: int, version: int, background: bool = False
    ) -> Mapping[str, float]:
        self.seen.append((step, version, background))
        if step in self.held:
            await self.go_on.wait()
            if self.error is not None:
                raise self.error
        self.ended.append(step)
        return {"sampled/solve_rate": step / 100}


class Parts:
    def __init__(self, folder: Path, evaluator: GatedEvaluator, **options: Any) -> None:
        self.learner = FakeLearner()
        self.checkpoints = FolderCheckpoints(folder / "checkpoints")
        wire = self.checkpoints.latest(self.learner)
        progress = Progress.from_wire(wire) if wire else None
        self.scheduler, gateway, _ = make_scheduler(
            with_signal, state=progress.scheduler if progress else SchedulerState()
        )
        self.events = MemoryEvents()
        self.loop = TrainingLoop(
            run_dir=folder,
            batches=self.scheduler,
            learner=self.learner,
            publisher=FakePublisher(gateway),
            checkpoints=self.checkpoints,
            evaluator=evaluator,
            events=self.events,
            progress=progress,
            **({"checkpointing": CheckpointSection(every=100)} | options),
        )

    async def run(self, steps: int) -> Any:
        async with self.scheduler:
            return await self.loop.run(steps)


def beside(every: int = 2) -> EvaluationSection:
    return EvaluationSection(every=every, background=True)


async def test_training_goes_on_beside_an_evaluation(tmp_path: Path) -> None:
    evaluator = GatedEvaluator(2)
    parts = Parts(tmp_path, evaluator, evaluation=beside())
    running = asyncio.create_task(parts.run(5))
    await until(lambda: parts.loop.progress.step == 5)
    assert evaluator.ended == [0], "the start is measured before the first step"
    evaluator.go_on.set()
    summary = await running
    assert evaluator.seen == [(0, 0, False), (2, 2, True), (5, 5, False)]
    assert evaluator.ended == [0, 2, 5], "the end is measured alone"
    assert summary.evaluation == {"eval/sampled/solve_rate": 0.05}
    skipped = parts.events.of_kind("evaluation.skipped")
    assert [event.fields["step"] for event in skipped] == [4]
    told = [event.fields["step"] for event in parts.events.of_kind("evaluation")]
    assert told == [0, 2, 5]


async def test_without_background_training_waits(tmp_path: Path) -> None:
    evaluator = GatedEvaluator(2)
    parts = Parts(tmp_path, evaluator, evaluation=EvaluationSection(every=2))
    running = asyncio.create_task(parts.run(4))
    await until(lambda: len(evaluator.seen) == 2)
    await asyncio.sleep(0.05)
    assert parts.loop.progress.step == 2
    evaluator.go_on.set()
    await running
    assert evaluator.seen == [(0, 0, False), (2, 2, False), (4, 4, False)]


async def test_a_failure_beside_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    evaluator = GatedEvaluator(2, error=InfraError("no held-out episode ran"))
    parts = Parts(tmp_path, evaluator, evaluation=beside())
    running = asyncio.create_task(parts.run(10_000))
    await until(lambda: parts.loop.progress.step >= 3)
    evaluator.go_on.set()
    with pytest.raises(InfraError, match="no held-out episode ran"):
        await running
    step = parts.loop.progress.step
    assert step < 10_000
    assert (tmp_path / "checkpoints" / f"{step}.json").exists()


async def test_ctrl_c_ends_an_evaluation_beside(tmp_path: Path) -> None:
    evaluator = GatedEvaluator(2)
    parts = Parts(tmp_path, evaluator, evaluation=beside())
    running = asyncio.create_task(parts.run(10_000))
    await until(lambda: parts.loop.progress.step >= 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert "evaluation 2" not in names


async def test_an_evaluation_that_a_kill_cut_is_made_up_for(tmp_path: Path) -> None:
    checkpointing = {"checkpointing": CheckpointSection(every=2)}
    first = Parts(
        tmp_path, GatedEvaluator(2), evaluation=EvaluationSection(every=2), **checkpointing
    )
    running = asyncio.create_task(first.run(4))
    await until(lambda: first.loop.progress.step == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    again = GatedEvaluator()
    section = EvaluationSection(every=2, modes=("greedy",))
    await Parts(tmp_path, again, evaluation=section).run(3)
    assert again.seen == [(2, 2, False), (3, 3, False)]
    # What is whole on the disk is not measured again.
    store = EvaluationStore(tmp_path / "evaluations")
    plan = EvaluationPlan(
        step=3, version=3, mode="greedy", temperature=0.0, attempts=1, tasks="digest"
    )
    store.write(Evaluation(plan=plan, duration_s=1.0, episodes=()))
    later = GatedEvaluator()
    section = EvaluationSection(every=3, modes=("greedy",))
    await Parts(tmp_path, later, evaluation=section).run(4)
    assert later.seen == [(4, 4, False)]


async def test_evaluated_steps_have_checkpoints_where_the_best_are_kept(tmp_path: Path) -> None:
    best = BestCheckpoints(tmp_path / "scores", metric="sampled/solve_rate", count=1)
    options = {
        "checkpointing": CheckpointSection(every=100, keep_best=1),
        "evaluation": EvaluationSection(every=2),
        "best": best,
    }
    await Parts(tmp_path, GatedEvaluator(), **options).run(5)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["2.json", "4.json", "5.json"]
    assert best.kept([2, 4, 5]) == {5}
    # Steps that are done again have no score yet.
    (tmp_path / "checkpoints" / "5.json").unlink()
    again = BestCheckpoints(tmp_path / "scores", metric="sampled/solve_rate", count=3)
    parts = Parts(tmp_path, GatedEvaluator(), **(options | {"best": again}))
    async with parts.scheduler:
        await parts.loop.run(4)
    assert again.kept([2, 4, 5]) == {2, 4}
