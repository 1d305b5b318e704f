"""What the services of a deployment do: asked of the engine until they are healthy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from palestra.errors import DeploymentError
from palestra.run.up.programs import run_program

FAILED = "failed: "
"""Begins what healthy.py says of a service that will not become healthy any more."""
POLL_S = 1.0
_CALL_TIMEOUT_S = 60.0
_LINES_SHOWN = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """What the engine knows of a service's container.

    Attributes:
        status: ``running``, ``exited`` and so on.
        health: ``starting``, ``healthy`` or ``unhealthy``.
        said: what the last health check printed.
        exit_code: of a container that has ended.
    """

    status: str
    health: str
    said: str
    exit_code: int

    @property
    def is_healthy(self) -> bool:
        """Whether it does its work."""
        return self.status == "running" and self.health == "healthy"

    @property
    def trouble(self) -> str | None:
        """Why it will not become healthy by waiting; ``None`` if it may."""
        if self.status not in ("created", "running"):
            return f"{self.status} with exit code {self.exit_code}"
        if self.said.startswith(FAILED):
            return self.said.removeprefix(FAILED)
        return f"unhealthy: {self.said}" if self.health == "unhealthy" else None


def read_state(inspected: bytes) -> ServiceState:
    """The state in what ``docker inspect --format '{{json .State}}'`` prints."""
    state = orjson.loads(inspected)
    health = state.get("Health") or {}
    log = health.get("Log") or ()
    return ServiceState(
        status=str(state.get("Status")),
        health=str(health.get("Status") or "none"),
        said=" ".join(str(log[-1].get("Output") or "").split()) if log else "",
        exit_code=int(state.get("ExitCode") or 0),
    )


async def wait_healthy(
    containers: Mapping[str, str], *, timeout_s: float, say: Callable[[str], None]
) -> None:
    """Return when every service is healthy.

    Args:
        containers: container ids by the service's name.
        timeout_s: for all of them together.
        say: told of what changes.

    Raises:
        DeploymentError: one will not become healthy, or not in time; with its last lines.
        HostError: the engine cannot be asked.
    """
    deadline_s = time.monotonic() + timeout_s
    waiting = dict(containers)
    shown: dict[str, str] = {}
    while True:
        for name, container in list(waiting.items()):
            state = await _look(container)
            if state.is_healthy:
                say(f"{name}: healthy")
                del waiting[name]
            elif (trouble := state.trouble) is not None:
                raise await _failure(name, container, trouble)
            elif (line := await _last_line(container)) and shown.get(name) != line:
                shown[name] = line
                say(f"{name}: {line}")
        if not waiting:
            return
        if time.monotonic() > deadline_s:
            name, container = next(iter(waiting.items()))
            raise await _failure(name, container, f"not healthy after {timeout_s:g} s")
        await asyncio.sleep(POLL_S)


async def _failure(name: str, container: str, trouble: str) -> DeploymentError:
    return DeploymentError(
        f"the service {name} is not well: {trouble}",
        log=[f"{name} | {line}" for line in await _logs(container, _LINES_SHOWN)],
        hint=f"docker logs {container[:12]} has all of it; palestra down removes everything",
    )


async def _look(container: str) -> ServiceState:
    command = ("docker", "inspect", "--format", "{{json .State}}", container)
    done = await run_program(command, timeout_s=_CALL_TIMEOUT_S)
    if done.exit_code:
        return ServiceState(status="gone", health="none", said="", exit_code=0)
    return read_state(done.output.encode())


async def _last_line(container: str) -> str:
    lines = await _logs(container, 1)
    return lines[-1] if lines else ""


async def _logs(container: str, number: int) -> Sequence[str]:
    command = ("docker", "logs", "--tail", str(number), container)
    done = await run_program(command, timeout_s=_CALL_TIMEOUT_S, merged=True)
    return done.last_lines(number)
