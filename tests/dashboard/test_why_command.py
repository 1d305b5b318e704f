"""``palestra why`` on a run directory that the real loop wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palestra.cli.main import app
from palestra.config import CheckpointSection, RolloutsSection
from palestra.dashboard.critical_path import Stage
from palestra.errors import ConfigError
from palestra.events import EventLog
from palestra.learning.fake import FakeLearner, FakePublisher, FolderCheckpoints
from palestra.learning.loop import TrainingLoop
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.fake import FakeEnvironment, FakeGateway, ScriptedEpisode
from palestra.learning.rollouts.scheduler import RolloutScheduler
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.recipe_files import parse_recipe
from palestra.records import Outcome
from palestra.run.directory import RunDirectory, create_run
from palestra.run.why import explain
from palestra.tasks.source import load_tasks


@pytest.fixture
async def run(tmp_path: Path) -> RunDirectory:
    recipe = parse_recipe({"name": "why", "runs": str(tmp_path)})
    made, recipe = create_run(recipe)
    gateway = FakeGateway()
    environment = FakeEnvironment(
        gateway, lambda task, number: ScriptedEpisode(outcome=Outcome.UNSOLVED, delay_s=0.02)
    )
    with EventLog(made.events) as events:
        scheduler = RolloutScheduler(
            collector=RolloutCollector(environment, gateway, sampling=recipe.sampling),
            order=TaskOrder(load_tasks("katas:train?seed=0&n=4&level=0"), seed=0, shuffle=False),
            section=RolloutsSection(groups_per_step=2, group_size=2, max_refill=1),
            run=recipe.name,
            concurrency=4,
            events=events,
        )
        async with scheduler:
            loop = TrainingLoop(
                run_dir=made.root,
                batches=scheduler,
                learner=FakeLearner(),
                publisher=FakePublisher(gateway),
                checkpoints=FolderCheckpoints(tmp_path / "checkpoints"),
                checkpointing=CheckpointSection(),
                events=events,
            )
            await loop.run(3)
    return made


def test_both_answers_as_text_and_as_json(run: RunDirectory) -> None:
    told = CliRunner().invoke(app, ["why", str(run.root)])
    assert told.exit_code == 0, told.output
    assert "Why slow: " in told.output
    assert "Why flat: the tasks are too hard: 6 of 6 groups were never solved" in told.output
    assert "effective batch 0.0 episodes a step of 64 planned" in told.output
    told = CliRunner().invoke(app, ["why", str(run.root), "--step", "2", "--json"])
    wire = json.loads(told.stdout)
    assert [step["step"] for step in wire["slow"]["steps"]] == [2]
    assert wire["flat"]["groups"] == {"all_zero": 2}
    (step,) = wire["slow"]["steps"]
    assert sum(s["seconds"] for s in step["stages"]) == pytest.approx(step["wall_s"], abs=1e-5)
    assert {s["stage"] for s in step["stages"]} <= set(Stage)


def test_a_step_that_is_not_there(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match=r"no complete step 4.*it has 1 to 3"):
        explain(run, step=4)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe\.toml"):
        explain(RunDirectory(tmp_path))


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    made, _ = create_run(parse_recipe({"name": "new", "runs": str(tmp_path)}))
    report = explain(made)
    assert report.slow.verdict == report.flat.verdict == "no step is complete yet"
