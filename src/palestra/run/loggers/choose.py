"""The loggers that a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from palestra.config import Recipe
from palestra.config_logging import LoggerName
from palestra.errors import MissingExtra
from palestra.events import EventSink
from palestra.recipe_files import recipe_data
from palestra.run.directory import RunDirectory
from palestra.run.loggers.background import BackgroundLogger
from palestra.run.loggers.events import LoggedEvents
from palestra.run.loggers.protocol import LoggedRun, OpenLogger

SECRETS = {"environment": ("token",)}


def opener(name: LoggerName) -> OpenLogger:
    """Who opens the logger of a name.

    Raises:
        MissingExtra: its package is not installed; names it.
    """
    if find_spec(name) is None:
        raise MissingExtra.named(name, needed_for=f"the logger {name}", module=name)
    match name:
        case "tensorboard":
            from palestra.run.loggers.tensorboard import TensorBoardLogger

            return TensorBoardLogger
        case "trackio":
            from palestra.run.loggers.trackio import TrackioLogger

            return TrackioLogger
        case "wandb":
            from palestra.run.loggers.wandb import WandbLogger

            return WandbLogger


def require_loggers(recipe: Recipe) -> None:
    """Make sure, before a run begins, that it can log where its recipe says.

    Raises:
        MissingExtra: the package of a logger is not installed; names it.
    """
    for name in recipe.logging.to:
        opener(name)


@contextmanager
def logged(
    events: EventSink,
    recipe: Recipe,
    run: RunDirectory,
    *,
    say: Callable[[str], None],
    open_with: Callable[[LoggerName], OpenLogger] = opener,
) -> Iterator[EventSink]:
    """Yield a sink that passes everything on to ``events``, and metrics to the loggers too.

    Args:
        events: the run's own.
        recipe: says which loggers.
        run: its directory.
        say: told of a logger that fails; it never stops the run.
        open_with: who opens the logger of a name.

    Raises (on entry):
        MissingExtra: the package of a logger is not installed; names it.
    """
    told = LoggedRun(
        name=recipe.name,
        project=recipe.logging.project,
        folder=run.root,
        config=_without_secrets(recipe),
    )
    with ExitStack() as stack:
        loggers = [
            stack.enter_context(BackgroundLogger(name, open_with(name), told, say=say))
            for name in recipe.logging.to
        ]
        yield LoggedEvents(events, loggers) if loggers else events


def _without_secrets(recipe: Recipe) -> dict[str, object]:
    data = recipe_data(recipe)
    for section, keys in SECRETS.items():
        for key in keys:
            data.get(section, {}).pop(key, None)
    return data
