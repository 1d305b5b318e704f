"""The engine that a recipe asks for: in this process, on running servers, or on new ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import orjson

from palestra.addresses import LOOPBACK
from palestra.config import EngineSection, Recipe
from palestra.config_engine import LaunchSection
from palestra.errors import ConfigError
from palestra.events import EventSink, NullEvents
from palestra.policy.engines.commands import launch_command, launch_environment
from palestra.policy.engines.fleet import Fleet, Place
from palestra.policy.engines.host import Elsewhere
from palestra.policy.engines.processes import Launched
from palestra.policy.engines.protocol import Engine
from palestra.policy.engines.remote import Server
from palestra.policy.engines.sglang import SGLangServer
from palestra.policy.engines.vllm import VLLMServer
from palestra.run.policy import local_engine
from palestra.serving import listen


def engine_of(
    recipe: Recipe,
    *,
    model: Path,
    weights: Path,
    version: int,
    logs: Path,
    events: EventSink | None = None,
    say: Callable[[str], None] | None = None,
) -> AbstractAsyncContextManager[Engine]:
    """The recipe's engine; an async context manager.

    Args:
        recipe: says which.
        model: Hugging Face folder that new servers start from; it must stay there.
        weights: folder of the weights that are to be served.
        version: of these weights.
        logs: folder of what new servers print.
        events: told of servers that come and go, and of weights.
        say: told how a start goes on, in one line.

    Raises:
        ConfigError: an address is no URL, or the engine cannot take this model's weights.
        HostError: a port is taken.
    """
    section = recipe.engine
    if section.kind == "local":
        return local_engine(weights, recipe, version=version)
    if section.kind == "vllm":
        refuse_tied(model)
    return Fleet(
        list(_places(recipe, model, logs)),
        weights=weights,
        version=version,
        max_context=recipe.model.max_context,
        publishing=section.publish,
        outage_s=section.outage_s,
        events=events or NullEvents(),
        say=say,
    )


def _places(recipe: Recipe, model: Path, logs: Path) -> Iterator[Place]:
    section = recipe.engine
    if section.launch is None:
        for url in section.urls:
            yield Place(server=_server(section, url), host=Elsewhere())
        return
    launch = section.launch
    for number, port in enumerate(_ports(launch)):
        command = launch_command(section, launch, recipe.model, model, host=LOOPBACK, port=port)
        yield Place(
            server=_server(section, f"http://{LOOPBACK}:{port}"),
            host=Launched(
                command,
                log=logs / f"engine-{number}.log",
                environment=launch_environment(launch, number, os.environ),
                start_timeout_s=launch.start_timeout_s,
            ),
        )


def refuse_tied(model: Path) -> None:
    """Say no where vLLM would reload a tied model and keep its old output head.

    Args:
        model: its Hugging Face folder.

    Raises:
        ConfigError: its embeddings are tied.
    """
    try:
        config = orjson.loads((model / "config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return  # whoever loads the model says it better
    if config.get("tie_word_embeddings"):
        raise ConfigError(
            f"{model}: input and output embeddings are tied, and vLLM keeps the old output "
            "embeddings of such a model when new weights come, without a word",
            hint="set engine.kind to sglang or local",
        )


def _server(section: EngineSection, url: str) -> Server:
    return SGLangServer(url) if section.kind == "sglang" else VLLMServer(url)


def _ports(launch: LaunchSection) -> tuple[int, ...]:
    """A port for each server; free ones are looked for all at once, so that they differ."""
    wanted = [launch.port + number if launch.port else 0 for number in range(launch.servers)]
    listeners = []
    try:
        for port in wanted:
            doing = f"cannot start an engine on port {port}"
            listeners.append(listen(LOOPBACK, port, doing=doing))
        return tuple(listener.getsockname()[1] for listener in listeners)
    finally:
        for listener in listeners:
            listener.close()
