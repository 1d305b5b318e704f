"""Running the environment server on a port, until it is told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from palestra.environment.server.app import create_app
from palestra.environment.server.service import EpisodeService
from palestra.errors import ConfigError, EnvironmentUnavailable, HostError

START_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 10.0
BACKLOG = 2048


class _Server(uvicorn.Server):
    """A server that leaves signals to the program it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    service: EpisodeService,
    *,
    host: str,
    port: int,
    token: str | None,
    on_ready: Callable[[str], None],
    stop: asyncio.Event,
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
    listener = _listen(host, port)
    app = create_app(service, token=token or None)
    server = _Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _started(server, serving)
        on_ready(_url(host, listener.getsockname()[1]))
        await _until(stop, serving)
        service.stop_taking()
        server.should_exit = True
        await asyncio.shield(serving)
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is named: without it
    # every answer of a kept-alive connection waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    doing = f"cannot listen on {host}:{port}"
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except socket.gaierror as error:
        listener.close()
        raise HostError(f"{doing}: {error.strerror}", hint="127.0.0.1 always works") from error
    except OSError as error:
        listener.close()
        raise HostError.from_os(error, doing=doing) from error
    except OverflowError as error:
        listener.close()
        raise HostError(f"{doing}: {error}", hint="ports end at 65535") from error
    return listener


async def _started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not server.started:
                if serving.done():
                    await serving
                    raise EnvironmentUnavailable("the server ended before it began")
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise EnvironmentUnavailable(
            f"the server did not start within {START_TIMEOUT_S:g} s"
        ) from error


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
