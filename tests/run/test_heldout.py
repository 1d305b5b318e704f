from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from palestra.config import Recipe, SamplingSection
from palestra.errors import ConfigError, InfraError
from palestra.events import MemoryEvents
from palestra.learning.evaluations import EvaluationPlan, EvaluationStore
from palestra.learning.protocols import StepReport
from palestra.learning.rollouts.fake import (
    EpisodeScript,
    FakeEnvironment,
    FakeGateway,
    ScriptedEpisode,
)
from palestra.records import EpisodeResult, Outcome, Rollout, Task
from palestra.run.heldout import HeldOutEvaluator

TASK = Task(
    instance_id="task-0",
    repo="owner/repo",
    base_commit="0" * 40,
    problem_statement="fix it",
    image="image",
    fail_to_pass=("t::a",),
    pass_to_pass=(),
    gold_patch="",
    test_patch="",
    eval_script="true",
    log_parser="pytest",
)
TASKS = [
    dataclasses.replace(TASK, instance_id=f"task-{n}", row={"family": "adder"} if n else {})
    for n in range(4)
]


class Watching:
    """A watcher that remembers what the evaluator says."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.num_episodes = 0

    def say(self, text: str) -> None: ...

    def on_warmup(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def on_episode_begin(self, rollout_id: str) -> None: ...

    def on_episode(self, rollout: Rollout) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def on_evaluation_begin(self, plan: EvaluationPlan, num_episodes: int) -> None:
        self.begun.append((plan.mode, num_episodes))

    def on_evaluation_episode(self, rollout: Rollout) -> None:
        self.num_episodes += 1


class Seeing(FakeEnvironment):
    """A fake environment that remembers the temperature of each request."""

    def __init__(self, gateway: FakeGateway, script: EpisodeScript) -> None:
        super().__init__(gateway, script)
        self.temperatures: list[float] = []

    async def run(self, task: Task, **options: Any) -> EpisodeResult:
        sampling: SamplingSection = options["sampling"]
        self.temperatures.append(sampling.temperature)
        return await super().run(task, **options)


class Parts:
    """An evaluator on fakes, and its parts."""

    def __init__(self, folder: Path, script: EpisodeScript, **sections: Any) -> None:
        gateway = self.gateway = FakeGateway()
        self.environment = Seeing(gateway, script)
        self.store = EvaluationStore(folder / "evaluations")
        self.watching = Watching()
        self.events = MemoryEvents()
        recipe = Recipe(
            **({"sampling": {"temperature": 0.7}, "rollouts": {"infra_retries": 0}} | sections)
        )
        self.evaluator = HeldOutEvaluator(
            TASKS,
            self.environment,
            gateway,
            recipe=recipe,
            store=self.store,
            watcher=self.watching,
            events=self.events,
        )


def half(task: Task, number: int) -> ScriptedEpisode:
    even = int(task.instance_id.removeprefix("task-")) % 2 == 0
    return ScriptedEpisode(outcome=Outcome.SOLVED if even else Outcome.TRUNCATED)


async def test_each_mode_is_measured_stored_and_told_of(tmp_path: Path) -> None:
    parts = Parts(tmp_path, half, evaluation={"attempts": 3})
    metrics = await parts.evaluator.evaluate(step=2, version=1)
    assert parts.environment.temperatures == [0.7] * 12 + [0.0] * 4
    assert parts.watching.begun == [("sampled", 12), ("greedy", 4)]
    assert parts.watching.num_episodes == 16
    stored = parts.events.of_kind("evaluation.stored")
    assert [event.fields["mode"] for event in stored] == ["sampled", "greedy"]
    for mode, episodes in (("sampled", 12), ("greedy", 4)):
        assert metrics[f"{mode}/solve_rate"] == 0.5
        assert metrics[f"{mode}/episodes"] == episodes
        assert metrics[f"{mode}/outcome/truncated"] == 0.5
        assert metrics[f"{mode}/solve_rate_low"] < 0.5 < metrics[f"{mode}/solve_rate_high"]
    sampled, greedy = parts.store.read_all()
    assert (sampled.plan.step, sampled.plan.version, sampled.plan.mode) == (2, 1, "sampled")
    assert [e.attempt for e in sampled.episodes] == [0, 1, 2] * 4
    assert [e.kind for e in greedy.episodes] == ["owner/repo", "adder", "adder", "adder"]
    assert {e.statement for e in greedy.episodes} == {"fix it"}


async def test_several_attempts_give_pass_at_k_without_those_that_failed(tmp_path: Path) -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        # One of four attempts solves task-0, all solve task-1, none the others, one of which
        # loses two attempts to the infrastructure.
        if task.instance_id == "task-3" and number >= 2:
            return ScriptedEpisode(outcome=Outcome.INFRA_ERROR)
        solved = task.instance_id == "task-1" or (task.instance_id == "task-0" and number == 2)
        return ScriptedEpisode(outcome=Outcome.SOLVED if solved else Outcome.UNSOLVED)

    sections = {"evaluation": {"attempts": 4, "modes": ["sampled"]}}
    parts = Parts(tmp_path, script, **sections)
    metrics = await parts.evaluator.evaluate(step=2, version=1)
    assert metrics["sampled/solve_rate"] == pytest.approx(5 / 14)
    assert metrics["sampled/pass@1"] == pytest.approx((1 / 4 + 1) / 4)
    assert metrics["sampled/pass@2"] == pytest.approx((1 / 2 + 1) / 4)
    assert metrics["sampled/pass@4"] == pytest.approx(2 / 3)
    assert metrics["sampled/pass@4_tasks"] == 3
    assert "sampled/pass@2_tasks" not in metrics
    for k in (1, 2, 4):
        low, high = (metrics[f"sampled/pass@{k}_{end}"] for end in ("low", "high"))
        assert 0 < low < metrics[f"sampled/pass@{k}"] < high < 1
    again = Parts(tmp_path, script, **sections)
    assert await again.evaluator.evaluate(step=2, version=1) == metrics
    assert again.environment.started == []


async def test_beside_training_it_takes_few_places_and_says_which_weights_sampled(
    tmp_path: Path,
) -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        if parts.environment.started.count(task.instance_id) and len(parts.environment.started) > 4:
            parts.gateway.version = 9  # as when training publishes meanwhile
        return ScriptedEpisode(delay_s=0.01)

    sections = {"environment": {"concurrency": 8}, "evaluation": {"modes": ["sampled"]}}
    parts = Parts(tmp_path / "beside", script, **(sections | {"evaluation": {"attempts": 3}}))
    metrics = await parts.evaluator.evaluate(step=4, version=0, background=True)
    assert parts.environment.max_running == 2
    versions = (metrics["sampled/oldest_version"], metrics["sampled/newest_version"])
    assert versions == (0, 9)
    assert [e.background for e in parts.store.read_all()] == [True, True]
    assert parts.store.read_all()[0].versions == (0, 9)
    alone = Parts(tmp_path / "alone", half, **sections)
    metrics = await alone.evaluator.evaluate(step=4, version=0)
    assert alone.environment.max_running == 4
    assert metrics["sampled/oldest_version"] == metrics["sampled/newest_version"] == 0


async def test_what_is_on_disk_is_not_done_again(tmp_path: Path) -> None:
    first = await Parts(tmp_path, half).evaluator.evaluate(step=0, version=0)
    again = Parts(tmp_path, half)
    assert await again.evaluator.evaluate(step=0, version=0) == first
    assert again.environment.started == []
    assert again.events.events == []
    # One mode is lost, as when a kill came before it was written: that one alone is redone.
    again.store.path(0, "greedy").unlink()
    await again.evaluator.evaluate(step=0, version=0)
    assert again.environment.temperatures == [0.0] * 4
    hotter = Parts(tmp_path, half, evaluation={"temperature": 1.3})
    await hotter.evaluator.evaluate(step=0, version=0)
    assert hotter.environment.temperatures == [1.3] * 4, "other settings are another evaluation"


async def test_infra_errors_are_retried_and_never_a_zero(tmp_path: Path) -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        first = task.instance_id == "task-1" and number == 0
        return ScriptedEpisode(outcome=Outcome.INFRA_ERROR if first else Outcome.SOLVED)

    modes = {"modes": ["greedy"]}
    parts = Parts(tmp_path / "a", script, evaluation=modes, rollouts={"infra_retries": 1})
    metrics = await parts.evaluator.evaluate(step=0, version=0)
    assert (metrics["greedy/solve_rate"], metrics["greedy/episodes"]) == (1.0, 4)
    assert parts.environment.started.count("task-1") == 2

    parts = Parts(tmp_path / "b", script, evaluation=modes)
    metrics = await parts.evaluator.evaluate(step=0, version=0)
    assert (metrics["greedy/solve_rate"], metrics["greedy/episodes"]) == (1.0, 3)
    assert metrics["greedy/outcome/infra_error"] == 0.25
    assert "sampled/episodes" not in metrics


async def test_a_broken_environment_stops_the_run_and_leaves_nothing_to_believe(
    tmp_path: Path,
) -> None:
    def script(task: Task, number: int) -> ScriptedEpisode:
        broken = task.instance_id != "task-0"
        return ScriptedEpisode(outcome=Outcome.INFRA_ERROR if broken else Outcome.SOLVED)

    parts = Parts(tmp_path, script)
    with pytest.raises(InfraError, match=r"3 of 4 held-out episodes .* the sandbox died"):
        await parts.evaluator.evaluate(step=0, version=0)
    assert parts.store.read_all() == []


async def test_what_the_user_must_mend_comes_as_itself(tmp_path: Path) -> None:
    parts = Parts(tmp_path, lambda task, number: ScriptedEpisode(error=ConfigError("mend this")))
    with pytest.raises(ConfigError, match="mend this"):
        await parts.evaluator.evaluate(step=0, version=0)
