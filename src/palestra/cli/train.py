"""``palestra train``: a whole run from one recipe."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from palestra.cli.loop import run_cancellable
from palestra.cli.miles import launch
from palestra.cli.report import conclude
from palestra.cli.terminal import say
from palestra.cli.training_view import TrainingView
from palestra.cli.view import DEFAULT_PORT
from palestra.cli.viewer import View, ViewPort, dashboard_beside
from palestra.config import Recipe, SandboxName
from palestra.errors import ConfigError, MissingExtra
from palestra.recipe_files import load_recipe, recipe_keys
from palestra.run.directory import create_run, locked, open_run
from palestra.run.loggers.choose import require_loggers
from palestra.run.recipes import find_recipe

if TYPE_CHECKING:
    from types import ModuleType

    from palestra.run.train import RunTasks


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; repeatable."),
]
Resume = Annotated[
    Path | None, typer.Option(help="Go on with this run directory instead of a recipe.")
]
Sandbox = Annotated[
    SandboxName | None, typer.Option(help="Sandbox backend; short for --set sandbox.backend=.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Start nothing: print what the run needs of its GPU, or with backend = miles its job "
        "as a script.",
    ),
]
GpuGib = Annotated[
    float | None,
    typer.Option(min=1, help="With --dry-run: plan for a GPU of so much memory, in GiB."),
]


def epilog() -> str:
    """Every key of a recipe with its default and meaning, for ``train --help``."""
    rows = (f"{key} = {default}: {description}\n\n" for key, default, description in recipe_keys())
    return "Keys of a recipe, each settable with --set:\n\n" + "".join(rows)


def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="The recipe: a TOML file, or the name of one that comes along."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = None,
    sandbox: Sandbox = None,
    dry_run: DryRun = False,
    gpu_gib: GpuGib = None,
    view: View = True,
    view_port: ViewPort = DEFAULT_PORT,
) -> None:
    """Train an agent: environment, gateway, engine and trainer from one recipe."""
    if (recipe is None) == (resume is None):
        raise ConfigError("give either a recipe or --resume DIR")
    overrides = [*(overrides or []), *([f"sandbox.backend={sandbox}"] if sandbox else [])]
    if recipe is not None:
        recipe = find_recipe(recipe)
        resolved = load_recipe(recipe, overrides)
        if resolved.backend == "miles":
            launch(resolved, origin=recipe, overrides=overrides, dry_run=dry_run)
            return
        if dry_run:
            _plan(resolved, gpu_gib)
            return
    if dry_run:
        raise ConfigError("--dry-run needs a recipe")
    training = _training()
    if resume is not None:
        run, resolved = open_run(resume, overrides)
        tasks = _ready(training, resolved, run.recipe, overrides)
    else:
        assert recipe is not None
        # Before there is a directory: a run that cannot start leaves nothing behind.
        tasks = _ready(training, resolved, recipe, overrides)
        run, resolved = create_run(resolved)
    with locked(run):
        try:
            with (
                TrainingView(resolved.training.steps, resolved.warmstart.steps) as watcher,
                dashboard_beside(
                    run.root.parent,
                    wanted=view,
                    port=view_port,
                    say=watcher.say,
                    page=f"/runs/{quote(run.root.name)}",
                    token=resolved.environment.token,
                ),
            ):
                watcher.say(f"run {run.root}")
                summary = run_cancellable(
                    training.train(resolved, run, tasks, watcher),
                    stopping=f"stopping; palestra train --resume {run.root} will go on",
                )
        finally:
            conclude(run)
    typer.echo(run.checkpoints / str(summary.progress.step) / "model")


def _ready(training: ModuleType, resolved: Recipe, origin: Path, overrides: list[str]) -> RunTasks:
    """Load the tasks of a run that nothing keeps from beginning."""
    require_loggers(resolved)
    _fitting().check_capacity(resolved, say)
    tasks: RunTasks = training.load_run_tasks(resolved, say)
    run_cancellable(
        training.require_certificates(resolved, tasks.train, origin=origin, overrides=overrides),
        stopping="stopping",
    )
    return tasks


def _plan(resolved: Recipe, gpu_gib: float | None) -> None:
    """Print what a run needs.

    Raises:
        ConfigError: it does not fit.
    """
    fitting = _fitting()
    plan = fitting.planned_capacity(resolved, gpu_gib=gpu_gib)
    if plan is None:
        say("a tiny model fits anywhere")
        return
    typer.echo(plan.table())
    if plan.machine.free_bytes is None:
        say("there is no GPU to compare with; --gpu-gib N plans for one")
    fitting.require_fit(plan, resolved)


def _fitting() -> ModuleType:
    _require_extra()
    return importlib.import_module("palestra.run.fitting")


def _training() -> ModuleType:
    _require_extra()
    return importlib.import_module("palestra.run.train")


def _require_extra() -> None:
    for module in ("torch", "transformers", "renderers", "tokenizers"):
        try:
            importlib.import_module(module)
        except ImportError:
            raise MissingExtra.named("train", needed_for="training", module=module) from None
