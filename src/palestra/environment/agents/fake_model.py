"""A public fake: a policy that plays a script, as an OpenAI-compatible server on a real port."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedReply:
    """What the server answers to one request.

    Attributes:
        text: content of the assistant message.
        commands: bash tool calls of the message.
        finish_reason: as it stands in the answer.
        status: HTTP status; with another than 200, ``body`` is the whole answer.
        body: replaces (200: is merged into) the answer.
        choice: merged into the choice: token fields.
        delay_s: seconds before answering.
    """

    text: str | None = None
    commands: tuple[str, ...] = ()
    finish_reason: str = "stop"
    status: int = 200
    body: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0


Policy = Callable[[Mapping[str, Any]], str | ScriptedReply]
"""Says what to answer to the body of a request."""


def block(command: str) -> str:
    """An answer that runs ``command``, in mini-swe-agent's text-block form."""
    return f"```mswea_bash_command\n{command}\n```"


class ScriptedModelServer:
    """Serves ``POST /v1/chat/completions``; an async context manager that yields itself.

    Args:
        replies: played in order, the last for ever, whoever asks; or a function of
            the request, for several conversations at once.
        port: to listen on, on loopback; 0: any free one.

    Attributes:
        requests: the bodies that came, in order.
        headers: the headers that came with them.
        num_waiting: requests that are being answered now.
    """

    def __init__(self, replies: Sequence[str | ScriptedReply] | Policy, *, port: int = 0) -> None:
        self._port = port
        self._policy = replies if callable(replies) else _in_order(replies)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.num_waiting = 0
        self._listener: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        """Ends in ``/v1``."""
        assert self._listener is not None, "the server has not been started"
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    async def __aenter__(self) -> ScriptedModelServer:
        app = FastAPI()
        app.add_api_route("/v1/chat/completions", self._complete, methods=["POST"])
        # Without a named protocol asyncio leaves Nagle's delay on.
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", self._port))
        self._listener.listen(512)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        async with asyncio.timeout(10):
            while not self._server.started:
                if self._serving.done():
                    await self._serving
                await asyncio.sleep(0.002)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._serving is not None
        assert self._listener is not None
        self._server.should_exit = True
        await self._serving
        self._listener.close()

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        reply = self._policy(body)
        if isinstance(reply, str):
            reply = ScriptedReply(text=reply)
        self.num_waiting += 1
        try:
            await _sleep_while_connected(request, reply.delay_s)
        finally:
            self.num_waiting -= 1
        if reply.status != 200:
            return JSONResponse(dict(reply.body), status_code=reply.status)
        return JSONResponse({**_answer(reply, body), **reply.body})


class _Server(uvicorn.Server):
    """A server that leaves signals to the program it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _in_order(replies: Sequence[str | ScriptedReply]) -> Policy:
    script = itertools.chain(replies, itertools.repeat(replies[-1]))
    return lambda _: next(script)


async def _sleep_while_connected(request: Request, delay_s: float) -> None:
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    if delay_s:
        left = asyncio.ensure_future(gone())
        await asyncio.wait({left}, timeout=delay_s)
        left.cancel()


def _answer(reply: ScriptedReply, request: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.commands:
        message["tool_calls"] = [
            {
                "id": f"call_{len(request['messages'])}_{number}",
                "type": "function",
                "function": {"name": "bash", "arguments": json.dumps({"command": command})},
            }
            for number, command in enumerate(reply.commands)
        ]
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": request.get("model", ""),
        "choices": [{**choice, **reply.choice}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
