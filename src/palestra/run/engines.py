"""An engine by the name that a user gives it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from palestra.config import Recipe
from palestra.errors import ConfigError
from palestra.policy.engines.sglang import SGLangEngine
from palestra.run.fidelity import Fidelity, measure
from palestra.run.policy import local_engine, model_folder
from palestra.tasks.source import load_tasks

LOCAL = "local"
_VOCABULARY = "katas:train?seed=7&n=64"


async def compared(
    recipe: Recipe, engine: str, *, num_sessions: int, on_session: Callable[[], None]
) -> Fidelity:
    """Compare an engine with the trainer's forward pass on the recipe's model.

    Args:
        recipe: names the model, how it is sampled and rendered.
        engine: ``local``, or the address of an SGLang server.
        num_sessions: to sample.
        on_session: told of each that is done.

    Raises:
        ConfigError: there is no such engine or model.
        EngineError: the engine failed.
    """
    if engine != LOCAL and not engine.startswith(("http://", "https://")):
        raise ConfigError(f"--engine {engine!r} is neither {LOCAL} nor an http:// address")
    with tempfile.TemporaryDirectory(prefix="palestra-fidelity-") as made:
        # Where a tiny model is asked for, it is made here.
        folder = model_folder(recipe.model, Path(made), load_tasks(_VOCABULARY), recipe.seed)
        running = (
            local_engine(folder, recipe)
            if engine == LOCAL
            else SGLangEngine(engine, max_context=recipe.model.max_context)
        )
        async with running as live:
            return await measure(
                recipe, folder, live, num_sessions=num_sessions, on_session=on_session
            )
