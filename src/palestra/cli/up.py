"""``palestra up`` and ``palestra down``: environment and trainer as services of compose."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from palestra.cli.loop import run_cancellable
from palestra.cli.terminal import say
from palestra.errors import DeploymentError
from palestra.recipe_files import load_recipe
from palestra.run.places import deployment_folder
from palestra.run.recipes import find_recipe
from palestra.run.up import Plan, bring_up, find_compose, take_down

Folder = Annotated[
    Path | None,
    typer.Option(help="Where variables and recipe are kept; default: below the user's state."),
]


class Sandboxes(StrEnum):
    """What the environment starts its sandboxes with."""

    BUBBLEWRAP = "bubblewrap"
    DOCKER = "docker"


def up(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe: a TOML file, or the name of one that comes along.")
    ] = Path("demo"),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
    ] = None,
    sandbox: Annotated[
        Sandboxes,
        typer.Option(help="bubblewrap: no socket; docker: this machine's engine, by its socket."),
    ] = Sandboxes.BUBBLEWRAP,
    gpu: Annotated[bool, typer.Option("--gpu", help="Give the trainer all GPUs.")] = False,
    build: Annotated[bool, typer.Option(help="Build the images first.")] = True,
    only_environment: Annotated[
        bool, typer.Option("--only-environment", help="Leave the trainer out.")
    ] = False,
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT", help="Where other machines reach the environment; else none do."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for the services to become healthy.")
    ] = 1800.0,
    folder: Folder = None,
) -> None:
    """Start environment and trainer on one network, and wait until both are healthy.

    Variables of the shell say the rest (folders, base images, pip's index):
    docs/deployment.md lists them.
    """
    plan = Plan(
        recipe=load_recipe(find_recipe(recipe), overrides or ()),
        folder=folder or deployment_folder(),
        sandbox=sandbox.value,
        gpu=gpu,
        build=build,
        publish=publish,
        only_environment=only_environment,
        timeout_s=timeout,
    )
    try:
        run_cancellable(_up(plan), stopping="stopping; palestra down removes what was started")
    except DeploymentError as error:
        _show(error)
        raise
    if not only_environment:
        say("training; follow it with: docker logs -f $(docker ps -qf name=palestra.trainer)")


def down(
    volumes: Annotated[
        bool,
        typer.Option("--volumes", help="Also remove runs, images and caches in volumes."),
    ] = False,
    folder: Folder = None,
) -> None:
    """Stop and remove the containers and the network that palestra up made."""
    try:
        run_cancellable(_down(folder or deployment_folder(), volumes), stopping="stopping")
    except DeploymentError as error:
        _show(error)
        raise
    say("down" if volumes else "down; volumes are kept, unless --volumes")


async def _up(plan: Plan) -> None:
    await bring_up(await find_compose(), plan, say=say)


async def _down(folder: Path, volumes: bool) -> None:
    await take_down(await find_compose(), folder, volumes=volumes)


def _show(error: DeploymentError) -> None:
    for line in error.log:
        say(f"  {line}")
