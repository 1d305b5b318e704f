"""The environment side: backend, agent and grader, wired into an episode runner."""

from __future__ import annotations

from collections.abc import Callable

from palestra.config import Recipe
from palestra.environment.agents.choose import make_agent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.protocol import Grader
from palestra.environment.grading.reuse import ReusingGrader
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.choose import Choice, choose_backend
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits
from palestra.events import EventSink
from palestra.run.gate import limits_of
from palestra.run.places import images_folder, state_folder


async def open_world(
    recipe: Recipe,
    events: EventSink | None = None,
    *,
    on_choice: Callable[[Choice], None] | None = None,
) -> EpisodeRunner:
    """Choose the backend, prove that it works, and wire the episode runner.

    Args:
        recipe: what to choose and to wire.
        events: told of unexpected failures.
        on_choice: told of the backend that was taken.

    Raises:
        SandboxUnavailable: no sandbox can be started here; says what to do.
        ConfigError: the agent's prompt set cannot be used.
    """
    agent = make_agent(
        recipe.agent,
        step_timeout_s=recipe.environment.step_timeout_s,
        time_limit_s=recipe.environment.episode_timeout_s,
    )
    backend, limits = await open_sandboxes(recipe, on_choice=on_choice)
    grader: Grader = make_grader(recipe, backend, limits)
    if recipe.environment.reuse_verdicts:
        grader = ReusingGrader(grader)
    return EpisodeRunner(backend, agent, grader, recipe.environment, limits, events=events)


async def open_sandboxes(
    recipe: Recipe, *, on_choice: Callable[[Choice], None] | None = None
) -> tuple[SandboxBackend, SandboxLimits]:
    """Choose the backend and prove that it works; with the limits of each sandbox.

    Raises:
        SandboxUnavailable: no sandbox can be started here; says what to do.
    """
    choice = await choose_backend(recipe.sandbox, state_dir=state_folder(), images=images_folder())
    if on_choice is not None:
        on_choice(choice)
    return choice.backend, limits_of(recipe)


def make_grader(recipe: Recipe, backend: SandboxBackend, limits: SandboxLimits) -> SandboxGrader:
    """The grader that the recipe describes."""
    return SandboxGrader(
        backend,
        limits,
        eval_timeout_s=recipe.environment.eval_timeout_s,
        section=recipe.grading,
    )
