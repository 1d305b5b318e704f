"""The run directory: where everything of one run lies, and the lock that guards it."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from palestra.config import Recipe
from palestra.errors import ConfigError, HostError
from palestra.recipe_files import load_recipe, recipe_data


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths below ``runs/NAME/``."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.toml"

    @property
    def events(self) -> Path:
        """The append-only event log."""
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.root / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Every episode of the held-out evaluations."""
        return self.root / "evaluations"

    @property
    def metrics(self) -> Path:
        """One row per training step."""
        return self.root / "metrics.csv"

    @property
    def rollouts(self) -> Path:
        """Every episode of training, a file a step."""
        return self.root / "rollouts"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.root / ".lock"

    @property
    def report(self) -> Path:
        """The page that shows what the run did."""
        return self.root / "report.html"

    @property
    def start_model(self) -> Path:
        """The model that the run starts from, where the recipe asks to make one."""
        return self.root / "start-model"

    @property
    def server_log(self) -> Path:
        """What the environment server printed."""
        return self.root / "environment.log"


def create_run(recipe: Recipe) -> tuple[RunDirectory, Recipe]:
    """Make the directory of a new run, ``NAME`` or the first free ``NAME-2``, ``NAME-3``, ….

    A run never writes over another; the recipe, with the name that it got, is written into it.

    Raises:
        HostError: the directory cannot be made.
    """
    runs = recipe.runs.absolute()
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            root = runs / (recipe.name if number == 1 else f"{recipe.name}-{number}")
            try:
                root.mkdir()
            except FileExistsError:
                continue
            run = RunDirectory(root)
            named = recipe.model_copy(update={"name": root.name})
            _write_recipe(run.recipe, named)
            return run, named
    except OSError as error:
        raise HostError.from_os(error, doing="cannot make the run directory") from error
    raise AssertionError("count() ends never")


def open_run(root: Path, overrides: list[str]) -> tuple[RunDirectory, Recipe]:
    """Open an existing run to go on with it, overrides laid over its recipe.

    Raises:
        ConfigError: there is no run, or an override is wrong.
    """
    run = RunDirectory(root.absolute())
    if not run.recipe.exists():
        raise ConfigError(f"{root} is not a run directory: it has no recipe.toml")
    recipe = load_recipe(run.recipe, overrides)
    if overrides:
        try:
            _write_recipe(run.recipe, recipe)
        except OSError as error:
            raise HostError.from_os(error, doing=f"cannot write {run.recipe}") from error
    return run, recipe


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Hold the run for this process; the lock dies with it, however it ends.

    Raises:
        ConfigError: another process has it.
    """
    try:
        fd = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot lock {run.root}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigError(f"another process is working on {run.root}") from None
    try:
        yield
    finally:
        os.close(fd)


def _write_recipe(path: Path, recipe: Recipe) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(tomli_w.dumps(recipe_data(recipe)), encoding="utf-8")
    temporary.replace(path)
