"""Bringing the two services up and taking them down again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palestra.config import Recipe
from palestra.errors import ConfigError, DeploymentError, HostError
from palestra.run.up import settings
from palestra.run.up.compose import (
    BASE,
    GPU,
    NETWORK,
    PROFILES,
    PROJECT,
    PUBLISH,
    SYSTEMPATHS,
    Compose,
    deploy_folder,
)
from palestra.run.up.programs import run_program
from palestra.run.up.services import wait_healthy

BUILD_TIMEOUT_S = 7200.0
CALL_TIMEOUT_S = 600.0
TRAINER = "trainer"
_LABEL = "com.docker.compose.project"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to bring up.

    Attributes:
        recipe: of the run; both services get it.
        folder: where variables and recipe are kept.
        sandbox: what the environment starts its sandboxes with.
        gpu: whether the trainer gets the GPUs.
        build: whether images are built before.
        publish: ``ADDRESS:PORT`` at which other machines reach the environment; ``None``: none.
        only_environment: whether the trainer is left out.
        timeout_s: for both to become healthy, after the images are there.
    """

    recipe: Recipe
    folder: Path
    sandbox: Literal["bubblewrap", "docker"]
    gpu: bool = False
    build: bool = True
    publish: str | None = None
    only_environment: bool = False
    timeout_s: float = 1800.0

    @property
    def environment(self) -> str:
        """The environment's service."""
        return f"swe_env_{self.sandbox}"

    @property
    def services(self) -> tuple[str, ...]:
        """The services that it starts."""
        return (self.environment,) if self.only_environment else (self.environment, TRAINER)


async def bring_up(compose: Compose, plan: Plan, *, say: Callable[[str], None]) -> None:
    """Write the variables, start the services, and return when they are healthy.

    Raises:
        DeploymentError: compose failed, or a service did not become healthy; says which.
        UsageError: a variable, the recipe or the machine is not as it must be.
    """
    await _require_own_network()
    names = _files(compose, plan)
    written = _write(compose, plan)
    say(f"{compose.described}; variables and token: {settings.env_file(plan.folder)}")
    if plan.sandbox == "docker":
        say("the environment gets the engine's socket: it is root on this machine")
    elif written.variables.get("PALESTRA_PRIVILEGED") == "true":
        say("the environment runs privileged: whoever breaks out of it is root on this machine")
    variables = written.environment()
    call = compose.arguments(names, (plan.sandbox,))
    await _remove_others(compose, plan, variables)
    if plan.build:
        say("building the images")
        await compose.run(
            (*call, "build", *plan.services), variables=variables, timeout_s=BUILD_TIMEOUT_S
        )
    say(f"starting {' and '.join(plan.services)}")
    await compose.run(
        (*call, "up", "-d", "--no-build", *plan.services),
        variables=variables,
        timeout_s=CALL_TIMEOUT_S,
    )
    containers = {name: await _container(name) for name in plan.services}
    await wait_healthy(containers, timeout_s=plan.timeout_s, say=say)


async def take_down(compose: Compose, folder: Path, *, volumes: bool) -> None:
    """Remove containers and network; with ``volumes`` also what they keep.

    Raises:
        DeploymentError: compose failed.
        HostError: it took too long.
    """
    # What is removed has the project's label; no variable matters, but one must be there.
    variables = {**os.environ, settings.TOKEN: "none"}
    call = compose.arguments((BASE,), PROFILES)
    options = ("--volumes",) if volumes else ()
    await compose.run(
        (*call, "down", "--remove-orphans", *options),
        variables=variables,
        timeout_s=CALL_TIMEOUT_S,
    )
    settings.forget(folder)


def _files(compose: Compose, plan: Plan) -> Sequence[str]:
    names = [BASE]
    if plan.gpu:
        names.append(GPU)
    if plan.sandbox == "bubblewrap" and compose.can_unmask:
        names.append(SYSTEMPATHS)
    if plan.publish is not None:
        names.append(PUBLISH)
    return names


def _write(compose: Compose, plan: Plan) -> settings.Settings:
    section = plan.recipe.environment
    if section.url is not None:
        raise ConfigError(
            "the recipe names environment.url, and palestra up starts an environment of its own",
            hint="leave it out, or run palestra train",
        )
    derived = settings.source(deploy_folder())
    if section.token is not None:
        derived[settings.TOKEN] = section.token
    if plan.sandbox == "bubblewrap" and not compose.can_unmask:
        derived["PALESTRA_PRIVILEGED"] = "true"
    if plan.publish is not None:
        derived["PALESTRA_PUBLISH"] = plan.publish
    # The token travels in the address alone, as an unchanged client of Gym wants it.
    bare = section.model_copy(update={"token": None})
    return settings.write(
        plan.folder,
        settings.collect(plan.folder, os.environ, derived),
        plan.recipe.model_copy(update={"environment": bare}),
    )


async def _remove_others(compose: Compose, plan: Plan, variables: Mapping[str, str]) -> None:
    """Remove what this plan does not start: two environments must not share one name."""
    others = [f"swe_env_{name}" for name in PROFILES if name != plan.sandbox]
    if plan.only_environment:
        others.append(TRAINER)
    found = [name for name in others if await _containers(name)]
    if found:
        await compose.run(
            (*compose.arguments((BASE,), PROFILES), "rm", "--stop", "--force", *found),
            variables=variables,
            timeout_s=CALL_TIMEOUT_S,
        )


async def _require_own_network() -> None:
    """A network of that name, made by hand, is not taken over by compose.

    Raises:
        HostError: there is one.
    """
    template = f'{{{{index .Labels "{_LABEL}"}}}}'
    done = await run_program(
        ("docker", "network", "inspect", "--format", template, NETWORK), timeout_s=CALL_TIMEOUT_S
    )
    if done.exit_code == 0 and done.output.strip() != PROJECT:
        raise HostError(
            f"there is a network {NETWORK} already that palestra up did not make",
            hint=f"remove the containers on it, then: docker network rm {NETWORK}",
        )


async def _container(service: str) -> str:
    found = await _containers(service)
    if not found:
        raise DeploymentError(f"the service {service} has no container")
    return found[0]


async def _containers(service: str) -> Sequence[str]:
    done = await run_program(
        (
            *("docker", "ps", "--all", "--quiet", "--no-trunc"),
            *("--filter", f"label={_LABEL}={PROJECT}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        ),
        timeout_s=CALL_TIMEOUT_S,
    )
    return done.output.split()
