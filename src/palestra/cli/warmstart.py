"""``palestra warmstart``: the supervised steps of a recipe, and no RL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palestra.cli.train import Overrides, Sandbox, train
from palestra.errors import ConfigError
from palestra.recipe_files import load_recipe
from palestra.run.recipes import find_recipe

# No RL step, and nothing held out is attempted, by which checkpoints could be kept.
_ALONE = ("training.steps=0", "tasks.heldout=", "checkpoints.keep_best=0")


def warmstart(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe: a TOML file, or the name of one that comes along.")
    ],
    overrides: Overrides = None,
    solved: Annotated[
        Path | None,
        typer.Option(
            help="Learn from the rollouts of this run directory that solved their task; short for "
            "--set warmstart.solved=."
        ),
    ] = None,
    sandbox: Sandbox = None,
) -> None:
    """Fit the model of a recipe to demonstrations, and print the folder of the new one.

    Demonstrations are real episodes in which a script that knows the gold patch plays the policy
    (warmstart.tasks), rollouts of an earlier run that solved their task (--solved), or both. Train
    on from it with --set model.path=FOLDER --set warmstart.steps=0.
    """
    given = [*(overrides or []), *([f"warmstart.solved={solved}"] if solved else []), *_ALONE]
    if not load_recipe(find_recipe(recipe), given).warmstart.steps:
        raise ConfigError("the recipe has no warm start", hint="--set warmstart.steps=100")
    train(recipe, given, sandbox=sandbox, view=False)
