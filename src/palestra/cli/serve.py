"""``palestra serve``: the environment server."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palestra.cli.loop import run_until_stopped
from palestra.cli.terminal import say
from palestra.cli.view import DEFAULT_PORT
from palestra.cli.viewer import View, ViewPort, dashboard_beside
from palestra.cli.waiting import end_of_stdin
from palestra.config import AgentName, Recipe, SandboxName
from palestra.errors import SandboxUnavailable
from palestra.recipe_files import change_recipe, load_recipe

if TYPE_CHECKING:
    from palestra.environment.sandboxes.choose import Choice


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 11000,
    recipe: Annotated[
        Path | None, typer.Option(help="Take every setting from this recipe; options win.")
    ] = None,
    agent: Annotated[AgentName | None, typer.Option(help="Agent that works on tasks.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks that a request may name by id alone.")
    ] = None,
    sandbox: Annotated[SandboxName | None, typer.Option(help="Sandbox backend.")] = None,
    images: Annotated[Path | None, typer.Option(help="Store of unpacked images.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Episodes at once.")] = None,
    prefetch: Annotated[
        bool, typer.Option(help="Bring the images of --tasks at once, in the background.")
    ] = False,
    queue_timeout: Annotated[float | None, typer.Option(help="Seconds in the queue.")] = None,
    image_timeout: Annotated[float | None, typer.Option(help="Seconds for an image.")] = None,
    start_timeout: Annotated[float | None, typer.Option(help="Seconds to start.")] = None,
    agent_timeout: Annotated[float | None, typer.Option(help="Seconds for the agent.")] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds that episodes may go on after SIGTERM.")
    ] = None,
    step_timeout: Annotated[float | None, typer.Option(help="Seconds for one command.")] = None,
    eval_timeout: Annotated[float | None, typer.Option(help="Seconds for the tests.")] = None,
    step_limit: Annotated[int | None, typer.Option(min=1, help="Model calls an episode.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt set, or a YAML's path.")] = None,
    policy_base_url: Annotated[
        str | None, typer.Option(help="Policy endpoint of requests that name none.")
    ] = None,
    policy_model_name: Annotated[
        str | None, typer.Option(help="Model name sent to it; default policy.")
    ] = None,
    env_yaml: Annotated[
        Path | None,
        typer.Option(help="Gym's env.yaml; default: the working directory's. Options win."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="PALESTRA_TOKEN", help="Token that requests must carry."),
    ] = None,
    view: View = True,
    view_port: ViewPort = DEFAULT_PORT,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    exit_with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Answer POST /run: start a sandbox, let the agent work, grade, and send the episode."""
    from palestra.run.announcement import Announcement, refusal_line
    from palestra.run.gym_env import find_gym_env
    from palestra.run.serve import ServeOptions, serve_environment

    settings = change_recipe(
        load_recipe(recipe) if recipe else Recipe(),
        {
            "agent.name": agent,
            "agent.step_limit": step_limit,
            "agent.prompt": prompt,
            "sandbox.backend": sandbox,
            "sandbox.images": images,
            "environment.concurrency": concurrency,
            "environment.queue_timeout_s": queue_timeout,
            "environment.image_timeout_s": image_timeout,
            "environment.start_timeout_s": start_timeout,
            "environment.episode_timeout_s": agent_timeout,
            "environment.drain_timeout_s": drain_timeout,
            "environment.step_timeout_s": step_timeout,
            "environment.eval_timeout_s": eval_timeout,
        },
        origin="options",
    )

    chosen: list[Choice] = []

    def on_choice(choice: Choice) -> None:
        say(choice.describe())
        chosen.append(choice)

    beside = ExitStack()

    def on_ready(url: str) -> None:
        say(f"serving on {url}")
        beside.enter_context(
            dashboard_beside(
                settings.runs,
                wanted=view and not exit_with_parent,  # who starts us so has one
                port=view_port,
                say=say,
                page="/now",
                environment=url,
                token=options.token,
            )
        )
        _announce(ready_fd, Announcement.of(url, chosen[-1]).to_line())

    gym = find_gym_env(env_yaml)
    options = ServeOptions(
        host=host or gym.default_host or "127.0.0.1",
        port=port,
        token=token or settings.environment.token,
        tasks=tasks,
        prefetch=prefetch,
        policy_base_url=policy_base_url or gym.policy_base_url,
        policy_api_key=os.environ.get("POLICY_API_KEY") or gym.policy_api_key,
        policy_model_name=policy_model_name or gym.policy_model_name or "policy",
    )
    try:
        with beside:
            run_until_stopped(
                lambda stop: serve_environment(
                    settings,
                    options,
                    on_bad_row=say,
                    on_choice=on_choice,
                    on_ready=on_ready,
                    stop=stop,
                ),
                watch=end_of_stdin if exit_with_parent else None,
                stopping="stopping: waiting for episodes to end",
            )
    except SandboxUnavailable as error:
        _announce(ready_fd, refusal_line(error))
        raise


def _announce(ready_fd: int | None, line: bytes) -> None:
    if ready_fd is not None:
        with suppress(OSError):
            os.write(ready_fd, line)
            os.close(ready_fd)
