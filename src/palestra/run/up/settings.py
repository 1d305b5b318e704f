"""The variables of a deployment: from the shell, kept in a file that only its owner reads."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tomli_w

import palestra
from palestra.config import Recipe
from palestra.errors import ConfigError, HostError
from palestra.recipe_files import recipe_data

TOKEN = "PALESTRA_TOKEN"
RECIPE_FILE = "PALESTRA_RECIPE_FILE"
TAKEN = (
    TOKEN,
    "PALESTRA_ENVIRONMENT_IMAGE",
    "PALESTRA_ENVIRONMENT_BASE",
    "PALESTRA_ENVIRONMENT_APT",
    "PALESTRA_ENVIRONMENT_SHM",
    "PALESTRA_ENVIRONMENT_ADDRESS",
    "PALESTRA_TRAINER_IMAGE",
    "PALESTRA_TRAINER_BASE",
    "PALESTRA_TRAINER_APT",
    "PALESTRA_TRAINER_EXTRAS",
    "PALESTRA_TRAINER_SHM",
    "PALESTRA_TRAINER_PRIVILEGED",
    "PALESTRA_CONTEXT",
    "PALESTRA_DOCKERFILES",
    "PALESTRA_REQUIREMENT",
    "PALESTRA_BUILD_NETWORK",
    "PALESTRA_PRIVILEGED",
    "PALESTRA_PUBLISH",
    "PALESTRA_IPC",
    "PALESTRA_NOFILE",
    "PALESTRA_MEMLOCK",
    "PALESTRA_SERVE_OPTIONS",
    "PALESTRA_TRAIN",
    "PALESTRA_WAIT_S",
    "PALESTRA_DATA",
    "PALESTRA_WORKSPACE",
    "PALESTRA_HUB_CACHE",
    "PALESTRA_IMAGES",
    "PALESTRA_RUNS",
    "PALESTRA_DOCKER_SOCKET",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_NO_INDEX",
    "PIP_FIND_LINKS",
    "HF_TOKEN",
    "HF_ENDPOINT",
)
"""What the compose files read; docs/deployment.md says of each what it is for."""

_FOLDERS = ("PALESTRA_DATA", "PALESTRA_WORKSPACE", "PALESTRA_HUB_CACHE", "PALESTRA_IMAGES",
            "PALESTRA_RUNS")  # fmt: skip
_ENV = "env"
# Compose programs do not agree on how these are written in an env file.
_UNWRITABLE = re.compile(r"['\"$\\\n\r]")
_IN_A_URL = re.compile(r"[A-Za-z0-9._~-]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """The variables, by name; only what is not the compose files' default."""

    variables: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        """The environment of a call of compose: ours, and the variables over it."""
        kept = {name: value for name, value in os.environ.items() if name not in TAKEN}
        return kept | dict(self.variables)


def collect(folder: Path, given: Mapping[str, str], derived: Mapping[str, str]) -> Settings:
    """The variables: what the shell says, else what follows from the command.

    A token that an earlier call wrote is kept, so that running services go on with it.

    Args:
        folder: of the deployment.
        given: the shell's variables.
        derived: from the command; the token may be among them.

    Raises:
        ConfigError: a value cannot be written or used.
    """
    variables = {**derived, **{name: given[name] for name in TAKEN if name in given}}
    variables[TOKEN] = variables.get(TOKEN) or _kept_token(folder) or secrets.token_urlsafe(24)
    if not _IN_A_URL.fullmatch(variables[TOKEN]):
        raise ConfigError(f"{TOKEN} goes into a URL: letters, digits, '.', '_', '~' and '-' only")
    for name, value in variables.items():
        if _UNWRITABLE.search(value):
            raise ConfigError(f"{name} may hold no quotes, dollars, backslashes or line ends")
    for name in _FOLDERS:
        # Compose takes a plain word for the name of a volume.
        if (place := variables.get(name, "/")).startswith("~") or not place.startswith("/"):
            variables[name] = str(Path(place).expanduser().absolute())
    return Settings(variables)


def source(context: Path) -> dict[str, str]:
    """Where images install palestra from: this checkout, else this version from an index.

    Args:
        context: the folder of compose files; built from where there is no checkout.
    """
    root = context.resolve().parents[2]
    if (root / "pyproject.toml").is_file() and (root / "src" / "palestra").is_dir():
        dockerfiles = str(context.resolve().relative_to(root))
        return {"PALESTRA_CONTEXT": str(root), "PALESTRA_DOCKERFILES": dockerfiles}
    return {
        "PALESTRA_CONTEXT": str(context),
        "PALESTRA_DOCKERFILES": ".",
        "PALESTRA_REQUIREMENT": f"palestra=={palestra.__version__}",
    }


def write(folder: Path, settings: Settings, recipe: Recipe | None) -> Settings:
    """Write recipe and variables for their owner alone; the settings with the recipe's place.

    The recipe's file is named by its content: services that see another one are made anew.

    Raises:
        HostError: they cannot be written.
    """
    variables = dict(settings.variables)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if recipe is not None:
            text = tomli_w.dumps(recipe_data(recipe))
            path = folder / f"recipe-{hashlib.sha256(text.encode()).hexdigest()[:12]}.toml"
            _write_private(path, text)
            variables[RECIPE_FILE] = str(path.absolute())
        lines = (f"{name}='{value}'\n" for name, value in sorted(variables.items()))
        _write_private(folder / _ENV, "".join(lines))
    except OSError as error:
        raise HostError.from_os(error, doing=f"cannot write into {folder}") from error
    return Settings(variables)


def env_file(folder: Path) -> Path:
    """The file of the variables, token included."""
    return folder / _ENV


def forget(folder: Path) -> None:
    """Remove what :func:`write` wrote; the folder too, if nothing else is in it."""
    for path in (env_file(folder), *folder.glob("recipe-*.toml")):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _kept_token(folder: Path) -> str | None:
    with suppress(OSError):
        for line in env_file(folder).read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name == TOKEN:
                return value.strip("'")
    return None


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)
