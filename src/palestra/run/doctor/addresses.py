"""Whether the two halves of a run can reach each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from palestra.addresses import URL_VARIABLE, gateway_host, named_url
from palestra.config import Recipe
from palestra.errors import PalestraError
from palestra.learning.rollouts.environment_client import EnvironmentClient
from palestra.run.doctor.findings import Finding, bad, good, note

TIMEOUT_S = 20.0
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


async def both_ways(recipe: Recipe) -> AsyncIterator[Finding]:
    """The environment server from here, and from there the place where a gateway would be."""
    url = named_url(recipe.environment)
    if url is None:
        yield good("environment", f"none is named ({URL_VARIABLE}): a run starts its own")
        return
    try:
        client = EnvironmentClient(url, recipe.environment.token, timeout_s=TIMEOUT_S)
    except PalestraError as error:
        yield _failed("environment", error)
        return
    async with client:
        try:
            await client.health()
        except PalestraError as error:
            yield _failed("environment", error)
            return
        yield good("environment", f"{client.address} answers")
        yield await _back(recipe, url, client)


async def _back(recipe: Recipe, url: str, client: EnvironmentClient) -> Finding:
    """Have the server ask a stand-in for the gateway, where the gateway would be."""
    if recipe.gateway.public_url is not None and recipe.gateway.port == 0:
        return note(
            "way back",
            "gateway.public_url is set, and which port it leads to is not known",
            "set gateway.port to have it checked",
        )
    try:
        host = gateway_host(recipe.gateway, url)
        async with _stand_in(host, recipe.gateway.port) as address:
            base = recipe.gateway.public_url or address
            await client.reach(f"{base}/v1")
    except PalestraError as error:
        return _failed("way back", error)
    except OSError as error:
        return bad(
            "way back", f"the gateway cannot listen: {error}", "set gateway.host and gateway.port"
        )
    return good("way back", f"{client.address} can reach a gateway at {base}")


@asynccontextmanager
async def _stand_in(host: str, port: int) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(_ANSWER)
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, port)
    async with server:
        taken = server.sockets[0].getsockname()
        name = f"[{taken[0]}]" if ":" in taken[0] else taken[0]
        yield f"http://{name}:{taken[1]}"


def _failed(about: str, error: PalestraError) -> Finding:
    seen, advice = (" ".join(text.split()) for text in (error.message, error.hint or ""))
    return bad(about, seen, advice or "check that it runs, its address and its token")
