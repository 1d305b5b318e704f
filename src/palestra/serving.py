"""What every HTTP server of ours shares: listening, starting, and clients that hang up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import uvicorn
from fastapi import Request

from palestra.errors import HostError, InfraError

START_TIMEOUT_S = 30.0
BACKLOG = 2048

Result = TypeVar("Result")


class QuietServer(uvicorn.Server):
    """A server that leaves signals to the program it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class ClientGone(Exception):
    """The client went away before it was answered."""


def listen(host: str, port: int, *, doing: str) -> socket.socket:
    """Open a listening socket.

    Args:
        host: address to listen on.
        port: 0 takes any free one.
        doing: begins the message of an error.

    Raises:
        HostError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is named: without it
    # every answer of a kept-alive connection waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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


async def wait_started(
    server: uvicorn.Server, serving: asyncio.Task[None], *, error: type[InfraError]
) -> None:
    """Return once ``server`` takes requests.

    Raises:
        InfraError: of the type ``error``: it ended first, or took too long.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not server.started:
                if serving.done():
                    await serving
                    raise error("the server ended before it began")
                await asyncio.sleep(0.002)
    except TimeoutError as late:
        raise error(f"the server did not start within {START_TIMEOUT_S:g} s") from late


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await ``work``, cancelling it when the client goes away.

    Raises:
        ClientGone: it did.
    """
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientGone
    finally:
        for task in (answer, gone):
            task.cancel()
        # The clean-up of the work belongs to the request: wait for it.
        with suppress(asyncio.CancelledError, Exception):
            await answer


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
