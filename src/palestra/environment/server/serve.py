"""Running the environment server on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from palestra.environment.server.app import create_app
from palestra.environment.server.service import EpisodeService
from palestra.errors import ConfigError, EnvironmentUnavailable
from palestra.serving import QuietServer, listen, wait_started

CLOSE_TIMEOUT_S = 10.0


async def serve(
    service: EpisodeService,
    *,
    host: str,
    port: int,
    token: str | None,
    on_ready: Callable[[str], None],
    stop: asyncio.Event,
    drain_timeout_s: float = 600.0,
) -> None:
    """Serve until ``stop`` is set, then let the episodes at work end.

    Requests in the queue are given up at once. Cancelling this cancels every episode,
    waits for its clean-up and returns.

    Args:
        service: answers.
        host: address to listen on; one that others can reach needs a token.
        port: 0 takes any free one.
        token: requests must carry it; ``None``: none needs to.
        on_ready: told the URL once requests are taken.
        stop: set by whoever owns the signals.
        drain_timeout_s: how long episodes may go on after ``stop``; then they are cancelled.

    Raises:
        ConfigError: others could reach the server, and it has no token.
        HostError: the port is taken or the address is not this machine's.
        EnvironmentUnavailable: the server did not come up, or ended by itself.
    """
    if not token and not _is_loopback(host):
        raise ConfigError(
            f"a server on {host} is open to others and needs a token",
            hint="--token, $PALESTRA_TOKEN or environment.token; or --host 127.0.0.1",
        )
    listener = listen(host, port, doing=f"cannot listen on {host}:{port}")
    app = create_app(service, token=token or None)
    server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await wait_started(server, serving, error=EnvironmentUnavailable)
        on_ready(_url(host, listener.getsockname()[1]))
        await _until(stop, serving)
        service.stop_taking()
        server.should_exit = True
        await asyncio.wait({serving}, timeout=drain_timeout_s)
    finally:
        await service.aclose()
        await _closed(server, serving)
        listener.close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


async def _until(stop: asyncio.Event, serving: asyncio.Task[None]) -> None:
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    if serving.done():
        await serving
        raise EnvironmentUnavailable("the server ended by itself")


async def _closed(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    """Wait for the last answers to leave, but not for clients that keep connections open."""
    server.should_exit = True
    await asyncio.wait({serving}, timeout=CLOSE_TIMEOUT_S)
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


def _url(host: str, port: int) -> str:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    reachable = everywhere.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
