"""Running the gateway on a port, inside the loop of whoever owns it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn

from palestra.errors import GatewayError
from palestra.policy.gateway.app import create_app
from palestra.policy.gateway.gateway import Gateway
from palestra.serving import QuietServer, listen, wait_started

STOP_TIMEOUT_S = 5


@asynccontextmanager
async def running_gateway(
    gateway: Gateway,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    public_url: str | None = None,
) -> AsyncIterator[str]:
    """Serve ``gateway`` and yield its root URL (without ``/v1``); stop it at the end.

    Args:
        gateway: answers.
        host: address to listen on; loopback unless others must reach it.
        port: 0 takes any free one.
        public_url: see :func:`~palestra.policy.gateway.app.create_app`.

    Raises:
        HostError: the port is taken or the address is not this machine's.
        GatewayError: the server did not come up.
    """
    listener = listen(host, port, doing=f"cannot listen on {host}:{port} for the gateway")
    config = uvicorn.Config(
        create_app(gateway, public_url=public_url),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = QuietServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await wait_started(server, serving, error=GatewayError)
        yield _url(host, listener.getsockname()[1])
    finally:
        # Ends what is still being generated, so that no connection holds up the stop.
        gateway.close()
        server.should_exit = True
        try:
            await asyncio.shield(serving)
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            listener.close()


def _url(host: str, port: int) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    reachable = everywhere.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
