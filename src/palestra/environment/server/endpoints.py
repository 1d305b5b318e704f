"""From a request to the task it is about and the endpoint that plays the policy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from palestra.environment.agents.protocol import ModelEndpoint
from palestra.environment.http_security import (
    EndpointRefused,
    EndpointUnresolved,
    check_endpoint,
)
from palestra.errors import ModelUnavailable, PalestraError, TaskError
from palestra.records import Task
from palestra.tasks.rows import task_from_row
from palestra.wire import RunRequest

DEFAULT_MODEL_NAME = "policy"


class BadRequest(PalestraError):
    """A request that cannot be served; ``field`` says where it is wrong."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDefaults:
    """The policy endpoint of requests that name none, as in Gym's ``env.yaml``."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    model_name: str = DEFAULT_MODEL_NAME
    timeout_s: float = 600.0


def choose_task(request: RunRequest, table: Mapping[str, Task]) -> Task:
    """The task of the row in the request, or of the table where it names only the id.

    Raises:
        BadRequest: the row is broken, or the table does not have the id.
    """
    row = request.row()
    if "problem_statement" in row:
        try:
            return task_from_row(row)
        except TaskError as error:
            raise BadRequest(str(error), field=_field_of(error)) from None
    if request.instance_id in table:
        return table[request.instance_id]
    if not table:
        raise BadRequest(
            "the request carries no row (it has no problem_statement), and this server knows no "
            "tasks by id: send the whole row, or start the server with --tasks",
            field="instance_id",
        )
    raise BadRequest(
        f"the request carries no row, and {request.instance_id!r} is none of the {len(table)} "
        "tasks that this server was started with: send the whole row, or add it to --tasks",
        field="instance_id",
    )


async def choose_endpoint(
    request: RunRequest,
    defaults: PolicyDefaults,
    *,
    allow_hosts: Collection[str],
    on_completion: Callable[[Mapping[str, Any]], None] | None = None,
) -> ModelEndpoint:
    """The endpoint that the request names, or the configured one.

    Raises:
        BadRequest: the one it names is refused, or there is none at all.
        ModelUnavailable: nobody knows the address of its host now.
    """
    if request.sglang_url is not None:
        try:
            base_url = await check_endpoint(request.sglang_url, allow_hosts=allow_hosts)
        except EndpointUnresolved as error:
            raise ModelUnavailable(f"{request.sglang_url!r} {error}") from None
        except EndpointRefused as error:
            raise BadRequest(f"{request.sglang_url!r} {error}", field="sglang_url") from None
        api_key = None  # ours is not for whomever a request names
    elif defaults.base_url is not None:
        base_url, api_key = defaults.base_url.rstrip("/"), defaults.api_key
    else:
        raise BadRequest(
            "the request names no policy endpoint, and this server has none configured: "
            "send sglang_url, or start the server with --policy-base-url",
            field="sglang_url",
        )
    return ModelEndpoint(
        base_url=base_url,
        model=_model_of(request) or defaults.model_name,
        api_key=api_key,
        sampling=sampling_fields(request),
        timeout_s=defaults.timeout_s,
        on_completion=on_completion,
    )


def sampling_fields(request: RunRequest) -> dict[str, Any]:
    """Chat-completion fields of what the request says about sampling.

    ``sampling_params`` win; where they are silent, ``responses_create_params`` speak.
    What neither names is left to the endpoint.
    """
    params = request.responses_create_params
    fields: dict[str, Any] = {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_output_tokens,
    }
    if request.sampling_params is not None:
        given = request.sampling_params.model_dump(exclude_none=True)
        if "max_new_tokens" in given:
            given["max_tokens"] = given.pop("max_new_tokens")
        fields.update(given)
    if request.return_token_ids:
        fields.update(return_token_ids=True, logprobs=True)
    return {name: value for name, value in fields.items() if value is not None}


def _model_of(request: RunRequest) -> str | None:
    model = (request.responses_create_params.model_extra or {}).get("model")
    return model if isinstance(model, str) and model else None


def _field_of(error: TaskError) -> str:
    # Errors of rows read "ID: field NAME …".
    _, found, rest = error.message.partition(": field ")
    name = rest.split(" ", 1)[0]
    return name if found and name.isidentifier() else "instance_id"
