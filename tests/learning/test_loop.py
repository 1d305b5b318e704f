from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_makers import make_group, make_scheduler

from palestra.config import CheckpointSection, EvaluationSection, RolloutsSection
from palestra.errors import CheckpointError, EngineError, InfraError
from palestra.events import MemoryEvents
from palestra.learning.evaluations import Evaluation, EvaluationPlan, EvaluationStore
from palestra.learning.fake import FakeLearner, FakePublisher, FolderCheckpoints
from palestra.learning.loop import TrainingLoop
from palestra.learning.metrics_table import MetricsTable
from palestra.learning.progress import IndexSet, Progress
from palestra.learning.protocols import StepReport
from palestra.learning.rollouts.batch import StepBatch
from palestra.learning.rollouts.fake import EpisodeScript, ScriptedEpisode
from palestra.learning.rollouts.filters import judge
from palestra.learning.rollouts.scheduler import SchedulerState
from palestra.learning.rollouts.store import RolloutStore
from palestra.records import Group, Outcome, Rollout, Task

DRIVER = Path(__file__).with_name("crash_driver.py")


def with_signal(task: Task, number: int) -> ScriptedEpisode:
    return ScriptedEpisode(outcome=Outcome.SOLVED if number % 2 else Outcome.UNSOLVED)


class Parts:
    """A loop on fakes in a folder, and its parts."""

    def __init__(
        self,
        folder: Path,
        *,
        script: EpisodeScript = with_signal,
        learner: FakeLearner | None = None,
        publisher: type[FakePublisher] = FakePublisher,
        scheduling: Mapping[str, Any] | None = None,
        every: int = 2,
        **options: Any,
    ) -> None:
        self.learner = learner or FakeLearner()
        self.checkpoints = FolderCheckpoints(folder / "checkpoints")
        wire = self.checkpoints.latest(self.learner)
        progress = Progress.from_wire(wire) if wire else None
        state = progress.scheduler if progress else SchedulerState()
        self.scheduler, self.gateway, self.environment = make_scheduler(
            script, state=state, **(scheduling or {})
        )
        self.publisher = publisher(self.gateway)
        self.events = MemoryEvents()
        self.loop = TrainingLoop(
            run_dir=folder,
            batches=self.scheduler,
            learner=self.learner,
            publisher=self.publisher,
            checkpoints=self.checkpoints,
            checkpointing=CheckpointSection(every=every),
            progress=progress,
            events=self.events,
            **options,
        )

    async def run(self, steps: int) -> Any:
        async with self.scheduler:
            return await self.loop.run(steps)


async def test_three_steps_leave_what_the_design_says(tmp_path: Path) -> None:
    reports: list[StepReport] = []

    class Observer:
        def on_step(self, report: StepReport) -> None:
            reports.append(report)

        def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
            raise AssertionError("there is no evaluator")

    parts = Parts(tmp_path, observer=Observer())
    summary = await parts.run(3)
    assert parts.learner.version == summary.progress.version == 3
    assert parts.publisher.published == [1, 2, 3]
    assert parts.learner.trained == [f"run-{group}-{i}" for group in range(6) for i in range(2)]
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["2", "3"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2.json", "3.json"]
    assert RolloutStore(tmp_path / "rollouts").steps() == [1, 2, 3]
    assert [row["step"] for row in MetricsTable(tmp_path / "metrics.csv").rows()] == ["1", "2", "3"]
    assert [(r.step, r.version, r.trained) for r in reports] == [(n, n, True) for n in (1, 2, 3)]
    assert [e.fields["step"] for e in parts.events.of_kind("step")] == [1, 2, 3]
    assert len(parts.events.of_kind("group")) == 6
    assert summary.metrics["train/rollouts"] == 4
    assert summary.metrics["reward/mean"] == 0.5
    assert {"time/train_s", "time/publish_s", "time/step_s"} <= set(summary.metrics)


async def test_a_step_with_nothing_to_train_on_is_counted_and_gone_past(tmp_path: Path) -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        early = int(task.instance_id.removeprefix("task-")) < 2
        return ScriptedEpisode() if early else with_signal(task, number)

    parts = Parts(tmp_path, script=script, scheduling={"max_refill": 1})
    summary = await parts.run(2)
    assert (summary.progress.step, summary.progress.version) == (2, 1)
    assert summary.progress.num_skipped == 1
    assert [e.fields["trained"] for e in parts.events.of_kind("step")] == [False, True]
    assert RolloutStore(tmp_path / "rollouts").steps() == [1, 2], "dropped rollouts are kept too"


# --- killed -------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [0, 1])
def test_kill_9_before_every_file_operation_then_resume(tmp_path: Path, allowed: int) -> None:
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), str(allowed)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    *killed, whole = lines
    assert len(killed) > 20, "the loop does fewer file operations than this test is for"
    assert whole["first"] == 0
    assert len(whole["trained"]) == 12, "3 steps of 2 groups of 2"
    for line in killed:
        where = f"killed before operation {line['operation']}: {done.stderr[-2000:]}"
        assert line["second"] == 0, where
        assert len(set(line["trained"])) == len(line["trained"]), f"{where}: trained twice"
        assert sorted(line["stored"]) == sorted(line["trained"]), where
        assert line["steps"] == line["rows"] == [1, 2, 3], where
        assert line["version"] == 3, where
        assert line["weights"] == [2, 3], where
        assert line["leftovers"] == [], where
        if allowed == 0:
            assert line["trained"] == whole["trained"], f"{where}: not the run it would have been"


async def test_files_beyond_the_checkpoint_are_set_aside(tmp_path: Path) -> None:
    await Parts(tmp_path, every=2).run(2)
    RolloutStore(tmp_path / "rollouts").write(3, [])
    MetricsTable(tmp_path / "metrics.csv").append(3, {"a": 1.0})
    (tmp_path / "weights" / "3").mkdir()
    parts = Parts(tmp_path)
    async with parts.scheduler:
        await parts.loop.run(2)
    assert [p.name for p in (tmp_path / "rollouts").glob("*.discarded")] == [
        "3.jsonl.zst.1.discarded"
    ]
    assert [row["step"] for row in MetricsTable(tmp_path / "metrics.csv").rows()] == ["1", "2"]
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["1", "2"]
    assert parts.events.of_kind("loop.started")[0].fields["discarded"]
    assert parts.publisher.published == [2], "a fresh engine gets the weights of the checkpoint"


# --- cancelled ----------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 3, 5, 8, 12, 17, 23, 30, 40, 60, 100])
async def test_ctrl_c_at_any_moment_keeps_what_is_complete(tmp_path: Path, turns: int) -> None:
    scheduling = {"max_off_policy_steps": 1, "concurrency": 3}
    parts = Parts(tmp_path, scheduling=scheduling, every=1000)
    running = asyncio.create_task(parts.run(50))
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert parts.gateway.open_sessions == ()
    assert parts.environment.num_running == 0
    step = parts.loop.progress.step
    assert [t for t in threading.enumerate() if t.name.startswith("learner")] == []
    assert RolloutStore(tmp_path / "rollouts").steps() == list(range(1, step + 1))
    resumed = Parts(tmp_path)
    assert resumed.loop.progress == parts.loop.progress, "the last complete step is saved"
    await resumed.run(step + 2)
    assert resumed.learner.version == step + 2
    assert len(set(resumed.learner.trained)) == len(resumed.learner.trained) == 4 * (step + 2)


async def test_ctrl_c_in_the_middle_of_training_completes_the_step(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    class SlowLearner(FakeLearner):
        def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
            started.set()
            assert go_on.wait(20)
            return super().train_step(groups)

    parts = Parts(tmp_path, learner=SlowLearner(), every=1000)
    running = asyncio.create_task(parts.run(5))
    await asyncio.get_running_loop().run_in_executor(None, started.wait, 20)
    running.cancel()
    await asyncio.sleep(0.02)
    assert not running.done(), "the thread cannot be cancelled, so it must be waited for"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    resumed = Parts(tmp_path)
    assert resumed.loop.progress.step == resumed.learner.version == 1


# --- overlap ------------------------------------------------------------------


async def test_generation_and_training_overlap(tmp_path: Path) -> None:
    ahead = threading.Event()

    class Observer:
        def on_episode_begin(self, rollout_id: str) -> None: ...

        def on_episode(self, rollout: Rollout) -> None:
            if rollout.rollout_id == "run-3-1":  # of the second step
                ahead.set()

    class WaitingLearner(FakeLearner):
        def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
            assert ahead.wait(20), "no episode ended while the learner was busy"
            return super().train_step(groups)

    def script(task: Task, number: int) -> ScriptedEpisode:
        late = task.instance_id in ("task-2", "task-3")
        outcome = Outcome.SOLVED if number else Outcome.UNSOLVED
        return ScriptedEpisode(outcome=outcome, delay_s=0.05 if late else 0.0)

    scheduling = {"observer": Observer(), "max_off_policy_steps": 1}
    parts = Parts(tmp_path, script=script, scheduling=scheduling, learner=WaitingLearner())
    await parts.run(1)
    assert parts.learner.version == 1


# --- failures -----------------------------------------------------------------


async def test_too_many_infra_errors_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        broken = int(task.instance_id.removeprefix("task-")) >= 6
        return ScriptedEpisode(outcome=Outcome.INFRA_ERROR) if broken else with_signal(task, number)

    parts = Parts(tmp_path, script=script, every=1000)
    with pytest.raises(InfraError, match="4 of 4 episodes failed"):
        await parts.run(10)
    assert Parts(tmp_path).loop.progress.step == 3


@pytest.mark.parametrize("every", [1, 1000])
@pytest.mark.parametrize("broken", ["train_step", "save_weights", "publish"])
async def test_a_step_that_fails_half_way_is_not_saved(
    tmp_path: Path, broken: str, every: int
) -> None:
    class BrokenLearner(FakeLearner):
        def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
            if self.version == 1 and broken == "train_step":
                self.trained.append("half a step")
                raise ValueError("train_step")
            return super().train_step(groups)

        def save_weights(self, folder: Path) -> None:
            if self.version == 2 and broken == "save_weights":
                raise CheckpointError("save_weights")
            super().save_weights(folder)

    class BrokenPublisher(FakePublisher):
        async def publish(self, weights: Path, version: int) -> None:
            if version == 2 and broken == "publish":
                raise EngineError("publish")
            await super().publish(weights, version)

    parts = Parts(tmp_path, learner=BrokenLearner(), publisher=BrokenPublisher, every=every)
    with pytest.raises(Exception, match=broken):
        await parts.run(3)
    resumed = Parts(tmp_path)
    assert resumed.loop.progress.step == resumed.learner.version == (1 if every == 1 else 0)
    await resumed.run(3)
    assert resumed.learner.trained == [f"run-{group}-{i}" for group in range(6) for i in range(2)]


async def test_a_learner_that_stands_elsewhere_is_refused(tmp_path: Path) -> None:
    await Parts(tmp_path).run(2)
    parts = Parts(tmp_path)
    parts.learner.train_step([])
    with pytest.raises(CheckpointError, match="version 3, but the run stands at version 2"):
        await parts.run(3)


class Repeating:
    """A broken batch source that brings the same groups each time."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self.state = SchedulerState()

    async def next_batch(self, version: int) -> StepBatch:
        section = RolloutsSection(max_off_policy_steps=9)
        judged = tuple(judge(g, version=version, section=section) for g in self._groups)
        return StepBatch(version=version, judged=judged, wait_s=0.0)


async def test_a_rollout_that_comes_again_stops_the_run(tmp_path: Path) -> None:
    group = make_group([Outcome.SOLVED, Outcome.UNSOLVED], index=7)
    parts = Parts(tmp_path)
    loop = TrainingLoop(
        run_dir=tmp_path,
        batches=Repeating([group]),
        learner=parts.learner,
        publisher=parts.publisher,
        checkpoints=parts.checkpoints,
        checkpointing=CheckpointSection(),
    )
    with pytest.raises(RuntimeError, match="run-7 comes a second time"):
        await loop.run(5)
    assert parts.learner.trained == ["run-7-0", "run-7-1"]
    # Also in another life.
    again = Parts(tmp_path)
    with pytest.raises(RuntimeError, match="second time"):
        again.loop.progress.claim(await Repeating([group]).next_batch(0))


# --- evaluation ---------------------------------------------------------------


async def test_evaluation_comes_before_in_between_and_after_once_each(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Evaluator:
        async def evaluate(self, *, step: int, version: int, background: bool) -> dict[str, float]:
            seen.append((step, version))
            return {"solve_rate": step / 10}

    options = {"evaluator": Evaluator(), "evaluation": EvaluationSection(every=3)}
    summary = await Parts(tmp_path, **options).run(4)
    assert seen == [(0, 0), (3, 3), (4, 4)]
    assert summary.evaluation == {"eval/solve_rate": 0.4}
    await Parts(tmp_path, **options).run(5)
    assert seen[3:] == [(5, 5)], "a resumed run does not evaluate its start again"


async def test_the_last_step_is_saved_before_it_is_evaluated(tmp_path: Path) -> None:
    class Evaluator:
        async def evaluate(self, *, step: int, version: int, background: bool) -> dict[str, float]:
            if step:
                assert (tmp_path / "checkpoints" / f"{step}.json").exists()
            return {}

    await Parts(tmp_path, every=100, evaluator=Evaluator()).run(3)


async def test_evaluations_beyond_the_checkpoint_are_set_aside(tmp_path: Path) -> None:
    await Parts(tmp_path).run(2)
    store = EvaluationStore(tmp_path / "evaluations")
    for step in (0, 2, 4):
        plan = EvaluationPlan(
            step=step, version=step, mode="greedy", temperature=0.0, attempts=1, tasks=""
        )
        store.write(Evaluation(plan=plan, duration_s=1.0, episodes=()))
    parts = Parts(tmp_path)
    await parts.run(2)
    assert [e.plan.step for e in store.read_all()] == [0, 2]
    (started,) = parts.events.of_kind("loop.started")
    assert started.fields["discarded"] == ["4-greedy.jsonl.zst.1.discarded"]


# --- progress -----------------------------------------------------------------


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_an_index_set_is_a_set(first: set[int], second: set[int]) -> None:
    indices = IndexSet().union(first).union(second)
    assert {i for i in range(-1, 63) if i in indices} == first | second
    assert len(indices) == len(first | second)
    assert indices == IndexSet().union(first | second), "equal sets look equal"


def test_an_index_set_of_a_long_run_is_short() -> None:
    assert IndexSet().union(range(24_000)).union(range(24_001, 24_008)).ranges == (
        (0, 23_999),
        (24_001, 24_007),
    )
    with pytest.raises(ValueError, match="not sorted disjoint"):
        IndexSet(((3, 5), (4, 9)))


def test_progress_crosses_json_and_is_strict() -> None:
    progress = Progress(
        step=3,
        version=2,
        num_skipped=1,
        used=IndexSet(((0, 4), (6, 6))),
        scheduler=SchedulerState(position=9, pending=(5, 7), quarantined=("task-8",)),
    )
    wire = json.loads(json.dumps(progress.to_wire()))
    assert Progress.from_wire(wire) == progress
    with pytest.raises(CheckpointError, match="extra"):
        Progress.from_wire(wire | {"extra": 1})
    with pytest.raises(CheckpointError, match="step"):
        Progress.from_wire(wire | {"step": "three"})
    with pytest.raises(CheckpointError, match="used"):
        Progress.from_wire(wire | {"used": {"ranges": [[5, 1]]}})
