"""Real SWE-Gym and SWE-bench rows in their own images, where this machine has them.

``docs/local-images.md`` says how to make the images; ``$PALESTRA_REAL_IMAGES`` names
the store and ``$PALESTRA_REAL_ROWS`` the file of rows (default: beside the repository).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from palestra.config import AgentSection, EnvironmentSection
from palestra.environment.agents.choose import make_agent
from palestra.environment.agents.fake_model import ScriptedModelServer, block
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.records import Outcome, Task
from palestra.tasks.source import load_tasks

REPOSITORY = Path(__file__).parent.parent.parent
STORE = Path(os.environ.get("PALESTRA_REAL_IMAGES", "/nonexistent"))
DEFAULT_ROWS = REPOSITORY.parent / "shared" / "data" / "runnable.jsonl"
ROWS = Path(os.environ.get("PALESTRA_REAL_ROWS", DEFAULT_ROWS))

pytestmark = pytest.mark.timeout(600)


def rows_with_images() -> list[Task]:
    if not STORE.is_dir() or not ROWS.is_file():
        return []
    known = set(ImageStore(STORE).names())
    return [task for task in load_tasks(str(ROWS)) if task.image in known]


TASKS = rows_with_images()
needs_images = pytest.mark.skipif(
    len({task.repo for task in TASKS}) < 2,
    reason="no images of two repositories; see docs/local-images.md",
)


def runner(tmp_path: Path, section: AgentSection) -> EpisodeRunner:
    backend = BubblewrapBackend(store=ImageStore(STORE), state_dir=tmp_path / "state")
    limits = SandboxLimits()
    environment = EnvironmentSection()
    return EpisodeRunner(
        backend,
        make_agent(section, step_timeout_s=120, time_limit_s=600),
        SandboxGrader(backend, limits, eval_timeout_s=600),
        environment,
        limits,
    )


@needs_images
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.instance_id)
@pytest.mark.parametrize(("name", "reward"), [("gold", 1.0), ("noop", 0.0)])
async def test_gold_solves_and_noop_does_not(
    task: Task, name: str, reward: float, tmp_path: Path
) -> None:
    episode = await runner(tmp_path, AgentSection(name=name)).run(task, None)
    assert episode.error is None
    assert episode.reward == reward
    assert episode.verdict is not None
    listed = (*task.fail_to_pass, *task.pass_to_pass)
    assert set(listed) <= set(episode.verdict.statuses), "a listed test did not run"


@needs_images
async def test_mini_swe_agent_solves_a_real_row_in_ten_steps(tmp_path: Path) -> None:
    task = TASKS[0]
    touched = task.gold_patch.split("--- a/")[1].splitlines()[0]
    script = [
        "ls -la",
        "git log --oneline | head -3",
        "git status --short",
        f"head -40 {touched}",
        "cd /tmp && pwd",
        "pwd",
        f"git apply <<'END_OF_FIX'\n{task.gold_patch}END_OF_FIX",
        f"git diff -- {touched} > patch.txt",
        "cat patch.txt",
        "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && cat patch.txt",
    ]
    async with ScriptedModelServer([block(command) for command in script]) as model:
        endpoint = ModelEndpoint(base_url=model.base_url, model="scripted")
        episode = await runner(tmp_path, AgentSection(name="mini")).run(task, endpoint)
    assert episode.error is None
    assert (episode.outcome, episode.reward) == (Outcome.SOLVED, 1.0)
    assert episode.num_turns == 10
    said = [message.content for message in episode.messages if message.role == "user"]
    assert "/tmp" in said[5]
    assert "/testbed" in said[6], "a command starts where the task says, whatever ran before"
    assert episode.submission is not None
    assert touched in episode.submission
