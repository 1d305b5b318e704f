"""``palestra replay``: the commands of a stored episode once more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import TypeAdapter

from palestra.cli.loop import run_cancellable
from palestra.cli.terminal import Counter, say
from palestra.config import Recipe, SandboxName
from palestra.environment.agents.choose import make_agent
from palestra.errors import ConfigError
from palestra.recipe_files import change_recipe
from palestra.records import Task
from palestra.run.episode_tasks import EpisodeTasks
from palestra.run.replay import NAMED_PATTERNS, Comparer, ReplayReport, replay
from palestra.run.stored_episodes import StoredEpisode, find_episode, recipe_of
from palestra.run.world import open_sandboxes


def replay_episode(
    episode: Annotated[str, typer.Argument(help="Its rollout id, or the environment's id of it.")],
    run: Annotated[
        Path | None,
        typer.Option(help="The run directory, or the folder of an evaluation; default runs/NAME."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Take the task's row from here; default the run's sources.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Run in this image; default the one of the task's row.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What may differ in outputs: {', '.join(NAMED_PATTERNS)}, or a regular "
            "expression; repeatable. Nothing is ignored unless named."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
    ] = None,
    sandbox: Annotated[SandboxName | None, typer.Option(help="Sandbox backend.")] = None,
    images: Annotated[Path | None, typer.Option(help="Store of unpacked images.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run an episode's commands in a fresh sandbox; show the first that does something else.

    Compares exit codes and whole outputs, command by command, and the patch at the end.
    Ends with 1 when something differs.
    """
    folder = run or _folder_of(episode)
    recipe = change_recipe(
        recipe_of(folder, overrides or []),
        {"sandbox.backend": sandbox, "sandbox.images": images},
        origin="options",
    )
    comparer = Comparer(ignore or [])
    stored = find_episode(folder, episode)
    task = EpisodeTasks(recipe, tasks, report=say).of(stored.episode.instance_id)
    task = task if image is None else replace(task, image=image)
    report = run_cancellable(_replay(stored, task, recipe, comparer), stopping="stopping")
    if as_json:
        wire = _REPORT.dump_python(report, mode="json") | {"identical": report.is_identical}
        typer.echo(orjson.dumps(wire, option=orjson.OPT_INDENT_2).decode())
    else:
        for line in report_lines(report):
            typer.echo(line)
    if not report.is_identical:
        raise typer.Exit(1)


def report_lines(report: ReplayReport) -> list[str]:
    """What came of it, for people; what the sandbox printed is quoted."""
    head = f"{report.name} ({report.instance_id}) in {report.image} ({report.image_id}): "
    notes = [f"  note: {note}" for note in report.notes]
    difference = report.difference
    if difference is None:
        return [f"{head}identical, {report.num_compared} of {report.num_commands} commands", *notes]
    if difference.index is None:
        where = "the commands agree, but their patch differs"
    else:
        where = (
            f"{difference.what} of command {difference.index + 1} of {report.num_commands} differs"
        )
    lines = [head + where, *notes]
    if difference.command is not None:
        lines.append(f"  command  {difference.command!a}")
    lines += [f"  stored   {difference.stored!a}", f"  now      {difference.replayed!a}"]
    if difference.note is not None:
        lines.append(f"  note: {difference.note}")
    return lines


async def _replay(
    stored: StoredEpisode, task: Task, recipe: Recipe, comparer: Comparer
) -> ReplayReport:
    agent = make_agent(
        recipe.agent,
        step_timeout_s=recipe.environment.step_timeout_s,
        time_limit_s=recipe.environment.episode_timeout_s,
    )
    backend, limits = await open_sandboxes(recipe, on_choice=lambda choice: say(choice.describe()))
    with Counter("commands", len(stored.episode.commands or ())) as counter:
        return await replay(
            stored.name,
            stored.episode,
            task,
            backend=backend,
            agent=agent,
            limits=limits,
            step_timeout_s=recipe.environment.step_timeout_s,
            comparer=comparer,
            on_command=lambda index, run: counter.advance(),
        )


def _folder_of(episode: str) -> Path:
    """``runs/NAME`` of a rollout id, which begins with the run's name."""
    name = episode.rpartition("-")[0].rpartition("-")[0]
    folder = Path("runs") / name
    if not name or not folder.is_dir():
        raise ConfigError(f"which run {episode!r} is of cannot be told from it", hint="--run DIR")
    return folder


_REPORT = TypeAdapter(ReplayReport)
