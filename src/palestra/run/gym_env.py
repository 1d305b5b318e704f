"""Gym's ``env.yaml``: where the policy is, as users of Gym have it in their working directory."""

from __future__ import annotations

from pathlib import Path

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palestra.errors import ConfigError

FILE_NAME = "env.yaml"


class GymEnv(BaseModel):
    """What we use of it; its other keys are for other servers of Gym."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    policy_base_url: str | None = None
    policy_api_key: str | None = Field(default=None, repr=False)
    policy_model_name: str | None = None
    default_host: str | None = None


def find_gym_env(named: Path | None) -> GymEnv:
    """Read the file that was named, or ``env.yaml`` of the working directory if it is there.

    Raises:
        ConfigError: the named file is not there, or one is not what Gym reads.
    """
    path = named or Path(FILE_NAME)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named is None:
            return GymEnv()
        raise ConfigError(f"there is no {named}", hint="--env-yaml wants Gym's env.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    try:
        # A file that is empty or holds comments only says nothing.
        return GymEnv.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # an input may be the key
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
