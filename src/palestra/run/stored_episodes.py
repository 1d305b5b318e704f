"""The episodes that a run, or an evaluation with ``--out``, left on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import tomli_w
from pydantic import ValidationError

from palestra.config import Recipe
from palestra.dashboard.rollout_files import lines_of
from palestra.errors import ConfigError, HostError
from palestra.learning.rollouts.json_lines import SUFFIX
from palestra.recipe_files import change_recipe, load_recipe, recipe_data
from palestra.records import EpisodeResult
from palestra.run.directory import RunDirectory
from palestra.wire import episode_from_wire

EVALUATION_LOG = "episodes.jsonl"
EVALUATION_RECIPE = "settings.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEpisode:
    """An episode as it was stored.

    Attributes:
        name: its rollout id, or its episode id where it was no rollout.
        path: of the file that it is in.
        episode: itself.
    """

    name: str
    path: Path
    episode: EpisodeResult


def recipe_of(folder: Path, overrides: list[str]) -> Recipe:
    """The recipe that the episodes of ``folder`` ran under, with overrides laid over it.

    Raises:
        ConfigError: there is none, or an override is wrong.
    """
    for path in (RunDirectory(folder).recipe, folder / EVALUATION_RECIPE):
        if path.exists():
            return load_recipe(path, overrides)
    raise ConfigError(
        f"{folder} is neither a run directory nor the folder of an evaluation",
        hint=f"it has no recipe.toml and no {EVALUATION_RECIPE}",
    )


def write_settings(folder: Path, recipe: Recipe, tasks: str) -> None:
    """Leave beside the episodes of an evaluation what it takes to replay and regrade them.

    Args:
        folder: of the evaluation.
        recipe: that it ran under; its secrets are left out.
        tasks: source of its tasks.

    Raises:
        HostError: it cannot be written.
    """
    source = str(Path(tasks).absolute()) if Path(tasks).exists() else tasks
    settings = change_recipe(recipe, {"tasks.train": source}, origin="tasks")
    settings = settings.model_copy(
        update={
            "tasks": settings.tasks.model_copy(update={"heldout": None}),
            "environment": settings.environment.model_copy(update={"token": None}),
        }
    )
    try:
        (folder / EVALUATION_RECIPE).write_text(tomli_w.dumps(recipe_data(settings)), "utf-8")
    except OSError as error:
        raise HostError.from_os(error, doing="cannot write the settings") from error


def stored_episodes(folder: Path) -> Iterator[StoredEpisode]:
    """Every episode of a run: training step by step, then held-out evaluations.

    Raises:
        HostError: a file cannot be read.
    """
    for path in episode_files(folder):
        for line in _lines(path):
            yield _stored(path, line)


def find_episode(folder: Path, name: str) -> StoredEpisode:
    """The episode of a name, the newest first.

    Args:
        folder: of the run or the evaluation.
        name: a rollout id, or the episode id that the environment gave.

    Raises:
        ConfigError: there is none of this name.
        HostError: a file cannot be read.
    """
    quoted = orjson.dumps(name)
    for path in reversed(episode_files(folder)):
        for line in _lines(path):
            # Most lines are megabytes of ids that need not be parsed.
            if quoted in line:
                stored = _stored(path, line)
                if name in (stored.name, stored.episode.episode_id):
                    return stored
    raise ConfigError(f"{folder} has no episode {name}")


def episode_files(folder: Path) -> list[Path]:
    """The files of a run that hold episodes, in the order in which they were written."""
    steps = (folder / "rollouts").glob(f"*{SUFFIX}")
    evaluations = (folder / "evaluations").glob(f"*{SUFFIX}")
    log = folder / EVALUATION_LOG
    return [
        *sorted(steps, key=_step_of),
        *sorted(evaluations, key=_step_of),
        *([log] if log.exists() else []),
    ]


def _step_of(path: Path) -> tuple[int, str]:
    number = path.name.removesuffix(SUFFIX).partition("-")[0]
    return (int(number) if number.isdecimal() else 0, path.name)


def _lines(path: Path) -> Iterator[bytes]:
    if path.name.endswith(SUFFIX):
        lines: Iterator[bytes] = lines_of(path)
        yield from (line for line in lines if b'"episode":' in line)
        return
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise HostError.from_os(error, doing="cannot read the episodes") from error


def _stored(path: Path, line: bytes) -> StoredEpisode:
    try:
        wire: dict[str, Any] = orjson.loads(line)
        episode = episode_from_wire(wire.get("episode", wire))
    except (orjson.JSONDecodeError, ValidationError, AttributeError) as error:
        raise HostError(f"cannot read an episode of {path}: {str(error).splitlines()[0]}") from None
    return StoredEpisode(
        name=wire.get("rollout_id") or episode.episode_id, path=path, episode=episode
    )
