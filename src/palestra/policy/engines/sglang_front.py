"""Any engine behind SGLang's HTTP shapes: stands in for a server, or a router over one.

For tests and for machines without a GPU; answers ``/generate``, ``/health``, and what a
trainer asks a router for (``/workers``, ``/abort_request``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from palestra.errors import ContextOverflow, EngineError, InfraError
from palestra.policy.engines.protocol import Engine
from palestra.records import FinishReason, Generation, SamplingParams
from palestra.serving import QuietServer, listen, wait_started, while_connected


class SGLangFront:
    """Answers SGLang's requests from ``engine``.

    Attributes:
        requests: bodies of ``/generate`` so far, as they came.
        answers: what the engine sampled for each of them that it answered, in that order.
    """

    def __init__(self, engine: Engine) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: list[tuple[tuple[int, ...], Generation]] = []
        self._engine = engine
        self._running: set[asyncio.Task[Generation]] = set()

    def abort(self) -> None:
        """End everything that is being generated, without ids."""
        for task in self._running:
            task.cancel()

    async def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            ContextOverflow: the prompt leaves no room.
            EngineError: the engine failed.
        """
        self.requests.append(body)
        params = body.get("sampling_params") or {}
        prompt_ids = tuple(body["input_ids"])
        task = asyncio.ensure_future(
            self._engine.generate(
                prompt_ids,
                SamplingParams(
                    temperature=params.get("temperature", 1.0),
                    top_p=params.get("top_p", 1.0),
                    max_new_tokens=params.get("max_new_tokens", 128),
                    stop_token_ids=tuple(params.get("stop_token_ids") or ()),
                    seed=params.get("sampling_seed"),
                ),
            )
        )
        self._running.add(task)
        try:
            generation = await task
        except asyncio.CancelledError:
            if task.cancelled() and not _being_cancelled():
                return self._answer(prompt_ids, None)
            task.cancel()
            raise
        finally:
            self._running.discard(task)
        self.answers.append((prompt_ids, generation))
        return self._answer(prompt_ids, generation)

    def _answer(self, prompt_ids: tuple[int, ...], generation: Generation | None) -> dict[str, Any]:
        ids = generation.ids if generation else ()
        pairs = zip(ids, generation.logprobs if generation else (), strict=True)
        return {
            "text": "",
            "output_ids": list(ids),
            "meta_info": {
                "id": f"front-{len(self.requests)}",
                "finish_reason": _finish_reason(generation),
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": len(ids),
                "cached_tokens": 0,
                "weight_version": str(self._engine.version),
                "output_token_logprobs": [[logprob, token, None] for token, logprob in pairs],
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFront:
    """A front that takes requests at ``http://host:port``."""

    front: SGLangFront
    host: str
    port: int

    @property
    def url(self) -> str:
        """Its root URL."""
        return f"http://{self.host}:{self.port}"


@asynccontextmanager
async def running_front(engine: Engine, *, host: str = "127.0.0.1") -> AsyncIterator[RunningFront]:
    """Serve ``engine`` on a free port of ``host``.

    Raises:
        HostError: the address is not this machine's.
        EngineError: the server did not come up.
    """
    front = SGLangFront(engine)
    listener = listen(host, 0, doing=f"cannot listen on {host}")
    running = RunningFront(front=front, host=host, port=listener.getsockname()[1])
    app = _app(front, engine, running.url)
    server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await wait_started(server, serving, error=EngineError)
        yield running
    finally:
        front.abort()
        server.should_exit = server.force_exit = True
        await asyncio.wait({serving}, timeout=5.0)
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        listener.close()


def _app(front: SGLangFront, engine: Engine, url: str) -> FastAPI:
    app = FastAPI(title="SGLang front", docs_url=None, redoc_url=None)

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        body = await request.json()
        try:
            return _json(await while_connected(request, front.generate(body)))
        except ContextOverflow as error:
            message = f"The input is longer than the model's context length: {error}"
            return _json({"error": {"message": message}}, 400)
        except (InfraError, KeyError, TypeError, ValueError) as error:
            return _json({"error": {"message": f"{type(error).__name__}: {error}"}}, 500)

    @app.get("/health")
    async def health() -> Response:
        await engine.health()
        return Response()

    @app.get("/workers")
    async def workers() -> Response:
        return _json({"workers": [{"url": url}]})

    @app.post("/abort_request")
    async def abort_request() -> Response:
        front.abort()
        return Response()

    return app


def _finish_reason(generation: Generation | None) -> dict[str, Any]:
    if generation is None:
        return {"type": "abort", "message": "aborted"}
    if generation.finish_reason is FinishReason.LENGTH:
        return {"type": "length", "length": len(generation.ids)}
    return {"type": "stop", "matched": generation.ids[-1] if generation.ids else None}


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
