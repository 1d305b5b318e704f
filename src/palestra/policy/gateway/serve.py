"""Running the gateway on a port, inside the loop of whoever owns it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn

from palestra.errors import GatewayError, HostError
from palestra.policy.gateway.app import create_app
from palestra.policy.gateway.gateway import Gateway

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5
BACKLOG = 2048


class _Server(uvicorn.Server):
    """A server that leaves signals to the program it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
    listener = _listen(host, port)
    config = uvicorn.Config(
        create_app(gateway, public_url=public_url),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _started(server, serving)
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is named: without it
    # every answer of a kept-alive connection waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        listener.close()
        doing = f"cannot listen on {host}:{port} for the gateway"
        if isinstance(error, OSError):
            raise HostError.from_os(error, doing=doing) from error
        raise HostError(f"{doing}: {error}", hint="ports end at 65535") from error
    return listener


async def _started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not server.started:
                if serving.done():
                    await serving
                    raise GatewayError("the gateway's server ended before it began")
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise GatewayError(f"the gateway did not start within {START_TIMEOUT_S:g} s") from error


def _url(host: str, port: int) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    reachable = everywhere.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
