"""Whether this server can reach a policy, asked before the first episode needs it."""

from __future__ import annotations

from collections.abc import Collection

import httpx

from palestra.environment.http_security import EndpointRefused, check_endpoint
from palestra.wire import ReachResponse

REACH_TIMEOUT_S = 10.0


async def reach(url: str, *, allow_hosts: Collection[str]) -> ReachResponse:
    """Ask the OpenAI endpoint at ``url`` for its models, under the rules of ``sglang_url``."""
    try:
        endpoint = await check_endpoint(url, allow_hosts=allow_hosts)
    except EndpointRefused as error:
        return ReachResponse(reachable=False, error=f"it {error}")
    try:
        async with httpx.AsyncClient(timeout=REACH_TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(f"{endpoint}/models")
    except httpx.HTTPError as error:
        return ReachResponse(reachable=False, error=f"{type(error).__name__}: {error}".rstrip(": "))
    if answer.is_success:
        return ReachResponse(reachable=True)
    return ReachResponse(reachable=False, error=f"it answered {answer.status_code}")
