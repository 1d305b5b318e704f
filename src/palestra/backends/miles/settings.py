"""What the hooks are told: Miles' arguments, our keys among them, and two variables.

Miles lays the keys of its ``--custom-config-path`` over its arguments, so that is where
ours stand, with ``palestra_`` before them.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palestra.addresses import URL_VARIABLE
from palestra.errors import ConfigError

PREFIX = "palestra_"
TOKEN_VARIABLE = "PALESTRA_TOKEN"


class HookSettings(BaseModel):
    """Keys of the hooks; each stands as ``palestra_KEY`` among Miles' arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment_url: str | None = Field(
        None, description="Environment server; none: $SWE_AGENT_GYM_URL, else it is looked for."
    )
    token: str | None = Field(
        None, repr=False, description="That the server wants; none: $PALESTRA_TOKEN."
    )
    environment_timeout_s: float = Field(
        7200, gt=0, description="Longest that one episode may take, the server's queue included."
    )
    start_timeout_s: float = Field(
        120, ge=0, description="How long the environment server may take to come up."
    )
    outage_s: float = Field(
        60, ge=0, description="How long the server may be out of reach before an episode fails."
    )
    renderer: str | None = Field(
        None, description="Of the gateway; none: the one that writes as the chat template does."
    )
    gateway_host: str | None = Field(
        None, description="Address that the gateway listens on; none: one that faces the server."
    )
    gateway_port: int = Field(0, ge=0, le=65535, description="Its port; 0: any free one.")
    gateway_public_url: str | None = Field(
        None, description="URL under which the environment server sees the gateway, if another."
    )
    max_context: int | None = Field(
        None, gt=1, description="Most ids of a conversation; none: what the model takes."
    )
    infra_retries: int = Field(
        2, ge=0, description="Retries of an episode that ended in infra_error."
    )
    truncated: Literal["keep", "mask"] = Field(
        "keep", description="Truncated rollouts: train on them, or only count them in the baseline."
    )
    drop_equal_groups: bool = Field(
        True, description="Drop groups whose rewards are all equal: they hold no signal."
    )

    @classmethod
    def read(cls, args: Namespace, variables: Mapping[str, str]) -> HookSettings:
        """Pick ours out of Miles' arguments.

        Args:
            args: Miles' arguments.
            variables: of the process.

        Raises:
            ConfigError: a key is unknown or its value is wrong.
        """
        given = {
            name.removeprefix(PREFIX): value
            for name, value in vars(args).items()
            if name.startswith(PREFIX)
        }
        for key, variable in (("environment_url", URL_VARIABLE), ("token", TOKEN_VARIABLE)):
            if given.get(key) is None and variables.get(variable):
                given[key] = variables[variable]
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{PREFIX}{key}: {first['msg']}") from None
