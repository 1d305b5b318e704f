"""A run whose delay we know: "why slow" must name that stage and its seconds.

Agent, episode, scheduler and loop are the real ones. Model, learner and grader are fakes
that cost next to nothing, so that what is left is the delay.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from slow_runs.delays import (
    Delays,
    NoCheckpoints,
    SlowAgent,
    SlowBackend,
    SlowCollector,
    SlowGrader,
    SlowLearner,
    SlowPublisher,
)

from palestra.config import (
    AgentSection,
    CheckpointSection,
    EnvironmentSection,
    Recipe,
    RolloutsSection,
    SamplingSection,
)
from palestra.dashboard.critical_path import Stage
from palestra.dashboard.run_log import run_log
from palestra.dashboard.slow import SlowReport, why_slow
from palestra.environment.agents.choose import make_agent
from palestra.environment.agents.fake_model import ScriptedModelServer, ScriptedReply, block
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.fake import ScriptedGrader
from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import EnvironmentUnavailable
from palestra.events import MemoryEvents
from palestra.learning.fake import FakeLearner, FakePublisher
from palestra.learning.loop import TrainingLoop
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.fake import FakeGateway
from palestra.learning.rollouts.scheduler import RolloutScheduler
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.records import EpisodeResult, Task
from palestra.tasks.source import load_tasks

DELAY_S = 0.5
ROUNDS = 2
"""Four episodes, two at once: what each of them waits for, the step waits for twice."""


class InProcess:
    """An environment without a server in between; fails each task's first ``failures`` tries."""

    def __init__(
        self, runner: EpisodeRunner, gateway: FakeGateway, model: ScriptedModelServer, failures: int
    ) -> None:
        self._runner = runner
        self._gateway = gateway
        self._model = model
        self._failures = dict.fromkeys(range(failures))

    async def run(
        self, task: Task, *, sglang_url: str, sampling: SamplingSection, idempotency_key: str
    ) -> EpisodeResult:
        if self._failures:
            self._failures.popitem()
            raise EnvironmentUnavailable("not yet")
        self._gateway.sample(sglang_url.split("/")[-2])
        endpoint = ModelEndpoint(base_url=self._model.base_url, model="scripted")
        return await self._runner.run(task, endpoint, episode_id=idempotency_key)


def two_turns(delay_s: float) -> Any:
    def policy(body: Mapping[str, Any]) -> ScriptedReply:
        answered = sum(message["role"] == "assistant" for message in body["messages"])
        command = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT" if answered else "true"
        return ScriptedReply(text=block(command), delay_s=delay_s)

    return policy


async def slow_run(folder: Path, delays: Delays, *, failures: int = 0) -> SlowReport:
    """One step of two groups of two, two episodes at once."""
    recipe = Recipe(
        agent=AgentSection(prompt="kata", step_limit=4),
        environment=EnvironmentSection(concurrency=2),
        rollouts=RolloutsSection(groups_per_step=2, group_size=2, drop_equal_groups=False),
    )
    backend = FakeSandboxBackend()
    agent = make_agent(recipe.agent, step_timeout_s=20, time_limit_s=60)
    events, gateway = MemoryEvents(), FakeGateway()
    runner = EpisodeRunner(
        SlowBackend(backend, pull_s=delays.pull, start_s=delays.start),
        SlowAgent(agent, delays.command),
        SlowGrader(ScriptedGrader(lambda task, patch: True), delays.grading),
        recipe.environment,
        SandboxLimits(),
    )
    tasks: Sequence[Task] = load_tasks("katas:train?seed=0&n=2&level=0")
    async with ScriptedModelServer(two_turns(delays.model)) as model:
        collector = RolloutCollector(
            InProcess(runner, gateway, model, failures),
            gateway,
            sampling=recipe.sampling,
            infra_retries=1,
            retry_delay_s=2 * DELAY_S,
            events=events,
        )
        scheduler = RolloutScheduler(
            collector=SlowCollector(collector, delays.idle),
            order=TaskOrder(tasks, seed=0, shuffle=False),
            section=recipe.rollouts,
            run="slow",
            concurrency=recipe.environment.concurrency,
            events=events,
        )
        async with scheduler:
            loop = TrainingLoop(
                run_dir=folder,
                batches=scheduler,
                learner=SlowLearner(FakeLearner(), delays.train),
                publisher=SlowPublisher(FakePublisher(gateway), delays.publish),
                checkpoints=NoCheckpoints(),
                checkpointing=CheckpointSection(),
                events=events,
            )
            await loop.run(1)
    return why_slow(run_log(events.events), recipe)


def check(report: SlowReport, stage: Stage, at_least_s: float) -> None:
    seconds = {time.stage: time.seconds for time in report.stages}
    assert report.stages[0].stage is stage, (report.verdict, seconds)
    assert seconds[stage] >= at_least_s * 0.98
    (step,) = report.steps
    assert sum(seconds.values()) == pytest.approx(step.wall_s, abs=1e-6)
    for before, after in itertools.pairwise(step.path):
        assert after.began_s == pytest.approx(before.ended_s, abs=1e-6), "no gaps"


@pytest.mark.parametrize(
    ("stage", "at_least_s"),
    [
        (Stage.PULL, ROUNDS * DELAY_S),
        (Stage.START, ROUNDS * DELAY_S),
        (Stage.MODEL, ROUNDS * 2 * DELAY_S),  # two turns
        (Stage.COMMAND, ROUNDS * 2 * DELAY_S),
        (Stage.GRADING, ROUNDS * DELAY_S),
        (Stage.IDLE, ROUNDS * DELAY_S),
        (Stage.TRAIN, 3 * DELAY_S),
        (Stage.PUBLISH, 3 * DELAY_S),
    ],
)
async def test_the_delayed_stage_is_named(tmp_path: Path, stage: Stage, at_least_s: float) -> None:
    # What is waited for once per step must still stand out from the episodes.
    once = stage in (Stage.TRAIN, Stage.PUBLISH)
    delays = Delays(**{stage.value: 3 * DELAY_S if once else DELAY_S})
    report = await slow_run(tmp_path, delays)
    check(report, stage, at_least_s)
    if not once:
        worst = report.worst[0]
        assert worst.critical_s >= 0.98 * DELAY_S
        assert worst.longest is not None
        assert worst.longest.stage is stage
        assert sum(time.seconds for time in worst.stages) == pytest.approx(worst.lasted_s)


async def test_attempts_that_failed_are_named_as_such(tmp_path: Path) -> None:
    report = await slow_run(tmp_path, Delays(), failures=2)
    check(report, Stage.RETRY, 2 * DELAY_S)
    assert any(advice.key == "rollouts.infra_retries" for advice in report.advice)
