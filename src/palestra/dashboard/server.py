"""Serving the pages until somebody stops it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from palestra.dashboard.app import create_app
from palestra.dashboard.guard import LOOPBACK_NAMES
from palestra.dashboard.site import Site, SiteOptions
from palestra.errors import ConfigError, InfraError
from palestra.serving import QuietServer, listen, wait_started

STOP_TIMEOUT_S = 2


async def serve_dashboard(
    options: SiteOptions,
    *,
    host: str,
    port: int,
    token: str | None,
    on_ready: Callable[[str], None],
    stop: asyncio.Event,
) -> None:
    """Serve until ``stop`` is set.

    Args:
        options: what to show.
        host: address to listen on.
        port: 0 takes any free one.
        token: that browsers must give as a password; wanted where others can reach us.
        on_ready: told the URL once requests are taken.
        stop: set by whoever owns the signals.

    Raises:
        ConfigError: others could reach it, and there is no token.
        HostError: the port is taken, or the address is not this machine's.
    """
    is_local = is_loopback(host)
    if not is_local and token is None:
        raise ConfigError(
            f"{host} can be reached from other machines, and episodes are for nobody else",
            hint="--token, or $PALESTRA_TOKEN",
        )
    listener = listen(host, port, doing=f"cannot show the dashboard on {host}:{port}")
    site = Site(options)
    hosts = (*LOOPBACK_NAMES, host) if token is None else ()
    config = uvicorn.Config(
        create_app(site, token=token, hosts=hosts),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = QuietServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stop.wait())
    try:
        await wait_started(server, serving, error=InfraError)
        on_ready(_url(host, listener.getsockname()[1]))
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        server.should_exit = True
        await asyncio.wait({serving}, timeout=STOP_TIMEOUT_S + 1)
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        site.close()
        listener.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
