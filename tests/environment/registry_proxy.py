"""A real HTTP proxy in front of a registry: it counts, fails and holds back on demand."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from types import TracebackType

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from palestra.serving import QuietServer

CHUNK_BYTES = 1 << 16


class RegistryProxy:
    """Passes ``GET`` and ``HEAD`` on; an async context manager that yields itself.

    Args:
        upstream: host and port of the registry.
        fails: says with which status a request of that path fails; ``None``: it does not.

    Attributes:
        statuses: of all answers, in order.
        num_bytes: of the bodies that were passed on, by path.
        held: digests whose blobs give no more than ``CHUNK_BYTES`` while they are here.
    """

    def __init__(self, upstream: str, fails: Callable[[str], int | None] = lambda _: None) -> None:
        self._fails = fails
        self.statuses: list[int] = []
        self.num_bytes: Counter[str] = Counter()
        self.held: set[str] = set()
        self._client = httpx.AsyncClient(base_url=f"http://{upstream}", trust_env=False)
        self._listener = socket.create_server(("127.0.0.1", 0))
        app = FastAPI()
        app.add_api_route("/{path:path}", self._pass_on, methods=["GET", "HEAD"])
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        self._server = QuietServer(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def host(self) -> str:
        """Host and port, as a registry's name."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def fetched(self, digest: str) -> int:
        """Bytes of that blob that were passed on."""
        return sum(num for path, num in self.num_bytes.items() if path.endswith(f"/blobs/{digest}"))

    async def _pass_on(self, request: Request, path: str) -> Response:
        status = self._fails(path)
        if status is not None:
            self.statuses.append(status)
            # Who is told to wait by the registry itself waits for seconds.
            return Response("busy", status_code=status, headers={"Retry-After": "0"})
        accepts = ", ".join(request.headers.getlist("accept")) or "*/*"
        sent = self._client.build_request(request.method, f"/{path}", headers={"Accept": accepts})
        answer = await self._client.send(sent, stream=True)
        self.statuses.append(answer.status_code)
        names = ("content-type", "content-length", "docker-content-digest")
        headers = {name: answer.headers[name] for name in names if name in answer.headers}
        return StreamingResponse(
            self._body(path, answer), status_code=answer.status_code, headers=headers
        )

    async def _body(self, path: str, answer: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.aiter_raw(CHUNK_BYTES):
                if self.num_bytes[path]:
                    await self._released(path.rpartition("/")[2])
                self.num_bytes[path] += len(chunk)
                yield chunk
        finally:
            await answer.aclose()

    async def _released(self, digest: str) -> None:
        for _ in itertools.count():
            if digest not in self.held:
                return
            await asyncio.sleep(0.02)

    async def __aenter__(self) -> RegistryProxy:
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._serving is not None
        self.held.clear()
        self._server.should_exit = True
        await self._serving
        await self._client.aclose()
        self._listener.close()
