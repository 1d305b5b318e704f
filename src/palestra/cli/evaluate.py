"""``palestra eval``: solve rate of an agent on tasks."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from palestra.cli.loop import run_cancellable
from palestra.cli.regrade import regrade_run
from palestra.cli.terminal import Counter, say
from palestra.config import AgentName, Recipe, SandboxName
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.errors import ConfigError, HostError
from palestra.recipe_files import change_recipe, load_recipe, parse_recipe
from palestra.records import EpisodeResult, Outcome, Task
from palestra.report.words import pass_words, solved_of
from palestra.run.evaluate import EvaluationReport, model_endpoint, run_episodes
from palestra.run.recipes import find_recipe
from palestra.run.stored_episodes import recipe_of, write_settings
from palestra.run.world import open_world
from palestra.tasks.source import load_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    recipe: Recipe
    tasks: list[Task]
    attempts: int
    concurrency: int
    out: Path | None


def evaluate(
    tasks: Annotated[
        str | None, typer.Argument(help="A task file, or katas:SPLIT?seed=&n=&level=.")
    ] = None,
    regrade: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run no episode: grade the stored patches of this run, or of this folder of "
            "--out, again and print what changed; TASKS replaces the rows they are graded with.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Take every setting from this recipe; options win.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set any key; repeatable."),
    ] = None,
    agent: Annotated[AgentName | None, typer.Option(help="Agent; default mini.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint of the model, ending in /v1.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Its name; without --base-url, a Hugging Face folder to serve, or demo."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Key of the endpoint.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling; 0: greedy; default 1.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that one turn may take; default 1024.")
    ] = None,
    attempts: Annotated[
        int,
        typer.Option("--samples", "--attempts", min=1, help="Tries at each task, for pass@k."),
    ] = 1,
    prompt: Annotated[
        str | None,
        typer.Option(help="swebench_backticks, swebench (tool calls), kata, or a YAML's path."),
    ] = None,
    step_limit: Annotated[int | None, typer.Option(min=1, help="Model calls an episode.")] = None,
    token_limit: Annotated[
        int | None, typer.Option(min=0, help="Tokens of all answers of an episode; 0: any.")
    ] = None,
    collapse_limit: Annotated[
        int | None, typer.Option(min=0, help="Equal commands in a row that end it; 0: never.")
    ] = None,
    max_format_errors: Annotated[
        int | None, typer.Option(min=1, help="Malformed answers in a row that end it.")
    ] = None,
    sandbox: Annotated[SandboxName | None, typer.Option(help="Sandbox backend.")] = None,
    images: Annotated[Path | None, typer.Option(help="Store of unpacked images.")] = None,
    host_image: Annotated[
        str | None, typer.Option(help="Image of katas on docker and podman.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Episodes at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first tasks.")] = None,
    image_timeout: Annotated[float | None, typer.Option(help="Seconds for an image.")] = None,
    start_timeout: Annotated[float | None, typer.Option(help="Seconds to start.")] = None,
    agent_timeout: Annotated[float | None, typer.Option(help="Seconds for the agent.")] = None,
    step_timeout: Annotated[float | None, typer.Option(help="Seconds for one command.")] = None,
    eval_timeout: Annotated[float | None, typer.Option(help="Seconds for the tests.")] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Context of a folder that is served; default 8192.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for episodes.jsonl and report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Let an agent work on every task, grade, and print the solve rate with its interval."""
    given = _given(recipe, overrides or [], regrade)
    context = max_context or given.model.max_context
    settings = change_recipe(
        given,
        {
            "agent.name": agent,
            "agent.prompt": prompt,
            "agent.step_limit": step_limit,
            "agent.token_limit": token_limit,
            "agent.collapse_limit": collapse_limit,
            "agent.max_format_errors": max_format_errors,
            "sandbox.backend": sandbox,
            "sandbox.images": images,
            "sandbox.host_image": host_image,
            "environment.image_timeout_s": image_timeout,
            "environment.start_timeout_s": start_timeout,
            "environment.episode_timeout_s": agent_timeout,
            "environment.step_timeout_s": step_timeout,
            "environment.eval_timeout_s": eval_timeout,
            "model.max_context": max_context,
            "sampling.max_new_tokens": min(
                max_tokens or given.sampling.max_new_tokens, context - 1
            ),
        },
        origin="options",
    )
    if regrade is not None:
        regrade_run(regrade, settings, tasks, concurrency=concurrency, limit=limit, as_json=as_json)
        return
    if tasks is None:
        raise ConfigError("give the tasks to work on, or --regrade RUN")
    if settings.agent.name == "mini" and model is None:
        raise ConfigError(
            "the agent mini needs a model", hint="--base-url URL --model NAME, or --model FOLDER"
        )
    loaded = load_tasks(tasks, limit=limit, on_bad_row="skip", report=say)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError.from_os(error, doing="cannot make the output folder") from error
        write_settings(out, settings, tasks)
    sampling = _sampling(settings, temperature, max_tokens)
    endpoint = (
        ModelEndpoint(base_url=base_url, model=model, api_key=api_key, sampling=sampling)
        if base_url and model
        else None
    )
    job = _Job(recipe=settings, tasks=loaded, attempts=attempts, concurrency=concurrency, out=out)
    ours = None if base_url else model
    report = run_cancellable(_evaluate(job, endpoint, ours, sampling), stopping="stopping")
    _print(report, as_json=as_json)
    if any(e.outcome is Outcome.INFRA_ERROR for e in report.episodes):
        raise typer.Exit(1)


def _given(recipe: Path | None, overrides: list[str], regrade: Path | None) -> Recipe:
    if recipe is None and regrade is not None:
        return recipe_of(regrade, overrides)
    if recipe is None:
        return parse_recipe({}, overrides, origin="--set")
    return load_recipe(find_recipe(recipe), overrides)


def _sampling(recipe: Recipe, temperature: float | None, max_tokens: int | None) -> dict[str, Any]:
    return {
        # A recipe cannot ask for 0, since training samples; an evaluation can.
        "temperature": recipe.sampling.temperature if temperature is None else temperature,
        "max_tokens": recipe.sampling.max_new_tokens if max_tokens is None else max_tokens,
    }


async def _evaluate(
    job: _Job, endpoint: ModelEndpoint | None, served: str | None, sampling: dict[str, Any]
) -> EvaluationReport:
    solved = 0

    async with AsyncExitStack() as stack:
        runner = await open_world(job.recipe, on_choice=lambda choice: say(choice.describe()))
        if served is not None:
            ours = await stack.enter_async_context(model_endpoint(served, job.recipe))
            endpoint = replace(ours, sampling=sampling)
        counter = stack.enter_context(Counter("episodes", len(job.tasks) * job.attempts))

        def on_episode(episode: EpisodeResult) -> None:
            nonlocal solved
            solved += episode.reward == 1.0
            counter.advance(f"{solved} solved")

        return await run_episodes(
            runner,
            job.tasks,
            endpoint=endpoint,
            attempts=job.attempts,
            concurrency=job.concurrency,
            out=job.out,
            on_episode=on_episode,
        )


def _print(report: EvaluationReport, *, as_json: bool) -> None:
    wire = report.to_wire()
    if as_json:
        typer.echo(orjson.dumps(wire, option=orjson.OPT_INDENT_2).decode())
        return
    for episode in report.episodes:
        if episode.error is not None:
            say(f"{episode.instance_id}: {episode.error}")
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(wire["outcomes"].items()))
    interval = report.interval
    if report.solve_rate is None or interval is None:
        typer.echo(f"no episode could be graded: {outcomes}")
    else:
        rate = solved_of(report.solve_rate, interval, len(report.rewards))
        typer.echo(f"{rate}: {outcomes}")
        for k, measure in report.pass_at().items():
            typer.echo(pass_words(k, measure))
