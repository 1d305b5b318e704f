"""``palestra serve``: the episode runner behind HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from palestra.config import Recipe
from palestra.environment.sandboxes.choose import Choice
from palestra.environment.server.endpoints import PolicyDefaults
from palestra.environment.server.serve import serve
from palestra.environment.server.service import EpisodeService
from palestra.run.world import open_world
from palestra.tasks.source import load_tasks
from palestra.wire import PrefetchRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where to listen, who may ask, and what a request may leave out."""

    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    tasks: str | None = None
    prefetch: bool = False
    policy_base_url: str | None = None
    policy_api_key: str | None = field(default=None, repr=False)
    policy_model_name: str = "policy"


async def serve_environment(
    recipe: Recipe,
    options: ServeOptions,
    *,
    on_bad_row: Callable[[str], None],
    on_choice: Callable[[Choice], None],
    on_ready: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """Serve until ``stop`` is set; live episodes then come to their end.

    Args:
        recipe: the environment's settings.
        options: of the server.
        on_bad_row: told of each row of the task file that cannot be used, in one line.
        on_choice: told of the sandbox backend that was taken, before ``on_ready``.
        on_ready: told the URL once requests are taken.
        stop: set by whoever owns the signals.

    Raises:
        SandboxUnavailable: no sandbox can be started here.
        UsageError: a task file, a port, a token or the machine is not as it must be.
    """
    tasks = load_tasks(options.tasks, on_bad_row="skip", report=on_bad_row) if options.tasks else []
    service = EpisodeService(
        await open_world(recipe, on_choice=on_choice),
        recipe.environment,
        policy=PolicyDefaults(
            base_url=options.policy_base_url,
            api_key=options.policy_api_key,
            model_name=options.policy_model_name,
        ),
        tasks=tasks,
    )
    if options.prefetch:
        service.prefetch(PrefetchRequest(instance_ids=tuple(t.instance_id for t in tasks)))
    await serve(
        service,
        host=options.host,
        port=options.port,
        token=options.token,
        on_ready=on_ready,
        stop=stop,
        drain_timeout_s=recipe.environment.drain_timeout_s,
    )
