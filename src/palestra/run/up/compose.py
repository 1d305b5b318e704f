"""Compose, whichever there is: the plug-in of docker, or docker-compose."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from palestra.errors import DeploymentError, HostError
from palestra.run.up.programs import Done, run_program

PROJECT = "palestra"
NETWORK = "swe-net"
PROFILES = ("bubblewrap", "docker")
BASE = "compose.yaml"
GPU = "gpu.yaml"
SYSTEMPATHS = "systempaths.yaml"
PUBLISH = "publish.yaml"

_OLDEST = (1, 28)  # knows profiles
_UNMASKS = (2, 16)  # translates systempaths=unconfined, which the engine does not know
_SHORT_S = 60.0
_LINES_SHOWN = 15
_PROGRAMS = (("docker", "compose"), ("docker-compose",))


def deploy_folder() -> Path:
    """Where the compose files and Dockerfiles lie."""
    return Path(str(files("palestra") / "deploy"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compose:
    """One compose program.

    Attributes:
        command: how it is called.
        version: of it.
    """

    command: tuple[str, ...]
    version: tuple[int, ...]
    described: str = field(default="", compare=False)

    @property
    def can_unmask(self) -> bool:
        """Whether a container can have an unmasked ``/proc`` without being privileged."""
        return self.version >= _UNMASKS

    def arguments(self, names: Sequence[str], profiles: Sequence[str]) -> tuple[str, ...]:
        """The call up to the verb, for these files of ours and profiles."""
        folder = deploy_folder()
        chosen = (part for name in names for part in ("-f", str(folder / name)))
        enabled = (part for profile in profiles for part in ("--profile", profile))
        return (*self.command, "-p", PROJECT, *chosen, *enabled)

    async def run(
        self, arguments: Sequence[str], *, variables: Mapping[str, str], timeout_s: float
    ) -> Done:
        """Run one call.

        Raises:
            DeploymentError: it failed; ends with the last lines that it printed.
            HostError: it took too long.
        """
        done = await run_program(arguments, timeout_s=timeout_s, variables=variables, merged=True)
        if done.exit_code:
            raise DeploymentError(
                f"{self.described} failed with {done.exit_code}",
                log=done.last_lines(_LINES_SHOWN),
            )
        return done


async def find_compose() -> Compose:
    """The newest compose here.

    Raises:
        HostError: there is none, it is too old, or the engine cannot be reached.
    """
    if shutil.which("docker") is None:
        raise HostError("there is no docker here", hint="install Docker with its compose plug-in")
    for command in _PROGRAMS:
        if shutil.which(command[0]) is None:
            continue
        done = await run_program((*command, "version", "--short"), timeout_s=_SHORT_S)
        version = _version(done.output) if done.exit_code == 0 else None
        if version is None:
            continue
        described = f"{' '.join(command)} {'.'.join(map(str, version))}"
        if version < _OLDEST:
            raise HostError(f"{described} knows no profiles", hint="install 1.28 or newer")
        await _require_engine()
        return Compose(command=command, version=version, described=described)
    raise HostError(
        "there is no compose here",
        hint="apt-get install docker-compose-plugin, or docker-compose",
    )


async def _require_engine() -> None:
    done = await run_program(
        ("docker", "version", "--format", "{{.Server.Version}}"), timeout_s=_SHORT_S, merged=True
    )
    if done.exit_code:
        said = " ".join(done.last_lines(2)) or "docker version says nothing"
        raise HostError(f"no engine answers: {said}", hint="start Docker, or join the group docker")


def _version(said: str) -> tuple[int, ...] | None:
    found = re.match(r"v?(\d+(?:\.\d+)*)", said.strip())
    return tuple(map(int, found[1].split("."))) if found else None
