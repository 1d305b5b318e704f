"""Episodes by the real runner on a fake sandbox, run again from what was stored of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from palestra.cli.replay import report_lines
from palestra.config import EnvironmentSection, Recipe
from palestra.environment.agents.scripted import ScriptedAgent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.fake import ScriptedGrader
from palestra.environment.sandboxes.fake import FakeSandboxBackend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import ConfigError, TaskError
from palestra.records import CommandRun, EpisodeResult, Task, TaskFile
from palestra.run.episode_tasks import EpisodeTasks
from palestra.run.replay import Comparer, ReplayReport, replay
from palestra.run.stored_episodes import (
    find_episode,
    recipe_of,
    stored_episodes,
    write_settings,
)
from palestra.tasks.source import load_tasks
from palestra.wire import episode_from_wire, episode_to_wire

KATAS = "katas:train?seed=0&n=2&level=0"


@pytest.fixture
def task() -> Task:
    return load_tasks(KATAS)[0]


async def run_episode(task: Task, commands: Sequence[str], **options: float) -> EpisodeResult:
    runner = EpisodeRunner(
        FakeSandboxBackend(),
        ScriptedAgent(lambda _: commands, **options),
        ScriptedGrader(lambda task, patch: True),
        EnvironmentSection(),
        SandboxLimits(),
    )
    episode = await runner.run(task, None)
    return episode_from_wire(orjson.loads(orjson.dumps(episode_to_wire(episode))))


async def again(
    episode: EpisodeResult, task: Task, *, ignore: Sequence[str] = (), step_timeout_s: float = 20
) -> ReplayReport:
    return await replay(
        "run-0-0",
        episode,
        task,
        backend=FakeSandboxBackend(),
        agent=ScriptedAgent(lambda _: ()),
        limits=SandboxLimits(),
        step_timeout_s=step_timeout_s,
        comparer=Comparer(ignore),
    )


async def test_the_same_commands_do_the_same(task: Task) -> None:
    commands = ["cat calc.py", "echo '# more' >> calc.py; git diff", "false", "seq 100000"]
    episode = await run_episode(task, commands)
    report = await again(episode, task)
    assert report.is_identical
    assert (report.num_commands, report.num_compared) == (4, 4)
    assert "identical, 4 of 4 commands" in report_lines(report)[0]


async def test_another_repository_differs_at_the_first_command_that_sees_it(task: Task) -> None:
    episode = await run_episode(task, ["true", "ls", "cat calc.py", "false"])
    (first, *others) = task.files
    files = (TaskFile(path=first.path, text=first.text.replace("return", "return  ")), *others)
    report = await again(episode, replace(task, files=files))
    difference = report.difference
    assert difference is not None
    assert (difference.index, difference.command, difference.what) == (2, "cat calc.py", "output")
    assert difference.stored.lstrip().startswith("return ")
    assert difference.replayed.lstrip().startswith("return  ")
    assert report.num_compared == 2
    assert "output of command 3 of 4 differs" in report_lines(report)[0]


async def test_an_exit_code_that_differs(task: Task, tmp_path: Path) -> None:
    (tmp_path / "flag").touch()
    episode = await run_episode(task, [f"test -e {tmp_path}/flag"])
    (tmp_path / "flag").unlink()
    difference = (await again(episode, task)).difference
    assert difference is not None
    assert (difference.what, difference.stored, difference.replayed) == ("exit code", "0", "1")


async def test_a_difference_far_behind_what_was_kept(task: Task, tmp_path: Path) -> None:
    (tmp_path / "length").write_text("20000")
    episode = await run_episode(task, [f"seq $(cat {tmp_path}/length)"])
    assert (await again(episode, task)).is_identical
    (tmp_path / "length").write_text("20001")
    difference = (await again(episode, task)).difference
    assert difference is not None
    assert "behind the first 4096 characters" in (difference.note or "")


async def test_nothing_is_ignored_unless_named(task: Task) -> None:
    episode = await run_episode(task, ["echo took $((RANDOM % 50)).$(date +%N | cut -c1-6)s"])
    plain = await again(episode, task)
    assert not plain.is_identical
    assert (await again(episode, task, ignore=["times"])).is_identical
    assert (await again(episode, task, ignore=[r"took \S+"])).is_identical
    assert not (await again(episode, task, ignore=["addresses"])).is_identical
    with pytest.raises(ConfigError, match="regular expression"):
        Comparer(["("])


async def test_a_patch_that_differs_although_the_commands_agree(task: Task) -> None:
    episode = await run_episode(task, ["echo $RANDOM$RANDOM > made.py"])
    difference = (await again(episode, task)).difference
    assert difference is not None
    assert (difference.index, difference.what) == (None, "patch")


async def test_commands_that_timed_out(task: Task, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    episode = await run_episode(
        task, [f"echo one; test -e {flag} || sleep 30; echo two"], step_timeout_s=0.5
    )
    assert (await again(episode, task, step_timeout_s=0.5)).is_identical
    flag.touch()
    difference = (await again(episode, task)).difference
    assert difference is not None
    assert (difference.what, difference.stored) == ("time-out", "timed out")


async def test_a_command_that_was_cut_off_is_not_run(task: Task, tmp_path: Path) -> None:
    episode = await run_episode(task, ["true"])
    cut = CommandRun(command=f"touch {tmp_path}/ran", began_s=0.0, duration_s=1.0, exit_code=None)
    assert episode.commands is not None
    report = await again(replace(episode, commands=(*episode.commands, cut)), task)
    assert report.is_identical
    assert (report.num_compared, report.num_commands) == (1, 2)
    assert "cut off" in report.notes[0]
    assert not (tmp_path / "ran").exists()


async def test_what_an_older_run_did_not_store(task: Task) -> None:
    episode = await run_episode(task, ["echo one", "false"])
    assert episode.commands is not None
    bare = tuple(replace(c, output=None, output_digest=None) for c in episode.commands)
    report = await again(replace(episode, commands=bare), task)
    assert report.is_identical
    assert "without outputs" in report.notes[0]
    with pytest.raises(ConfigError, match="without its commands"):
        await again(replace(episode, commands=None), task)


# --- where episodes lie -----------------------------------------------------------


def write_log(folder: Path, *episodes: EpisodeResult) -> None:
    folder.mkdir(exist_ok=True)
    lines = b"".join(orjson.dumps(episode_to_wire(e)) + b"\n" for e in episodes)
    (folder / "episodes.jsonl").write_bytes(lines)


async def test_episodes_of_an_evaluation_are_found_with_their_settings(
    task: Task, tmp_path: Path
) -> None:
    episode = await run_episode(task, ["true"])
    write_log(tmp_path, episode)
    write_settings(tmp_path, Recipe.model_validate({"environment": {"token": "geheim"}}), KATAS)
    assert "geheim" not in (tmp_path / "settings.toml").read_text()
    recipe = recipe_of(tmp_path, ["agent.prompt=kata"])
    assert (recipe.tasks.train, recipe.agent.prompt) == (KATAS, "kata")
    found = find_episode(tmp_path, episode.episode_id)
    assert found.episode == episode
    assert [stored.episode for stored in stored_episodes(tmp_path)] == [episode]
    assert EpisodeTasks(recipe, None, report=print).of(episode.instance_id) == task
    with pytest.raises(ConfigError, match="no episode"):
        find_episode(tmp_path, "other")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run directory"):
        recipe_of(tmp_path, [])


def test_a_task_that_no_source_has() -> None:
    tasks = EpisodeTasks(Recipe(), KATAS, report=print)
    assert tasks.find("nobody") is None
    with pytest.raises(TaskError, match="--tasks"):
        tasks.of("nobody")
