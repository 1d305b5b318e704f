"""Any engine behind SGLang's HTTP shapes: stands in for a server, or a router over one.

For tests and for machines without a GPU; answers ``/generate``, ``/health``,
``/update_weights_from_disk``, and what a trainer asks a router for (``/workers``,
``/abort_request``). As a program: :mod:`palestra.policy.engines.sglang_fake`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from palestra.errors import ContextOverflow, EngineError, InfraError
from palestra.policy.engines.protocol import Engine
from palestra.records import FinishReason, Generation, SamplingParams, Segment
from palestra.serving import QuietServer, listen, wait_started, while_connected


class SGLangFront:
    """Answers SGLang's requests from ``engine``.

    Args:
        engine: samples.
        chunk_ids: what is aborted keeps its ids in multiples of this; ``None``: keeps none.
        pace_s: seconds to wait after each chunk, to be slow.
        stamp: what the weights are called; ``None``: the engine's version.

    Attributes:
        requests: bodies of ``/generate`` so far, as they came.
        answers: what the engine sampled for each of them that it answered, in that order.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        chunk_ids: int | None = None,
        pace_s: float = 0.0,
        stamp: str | None = None,
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: list[tuple[tuple[int, ...], Generation]] = []
        self._engine = engine
        self._chunk_ids = chunk_ids
        self._pace_s = pace_s
        self._stamp = stamp
        self._running: set[asyncio.Task[FinishReason]] = set()
        # As in SGLang, what comes while weights are read waits until they are.
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._one_update = asyncio.Lock()

    def abort(self) -> None:
        """End everything that is being generated."""
        for task in self._running:
            task.cancel()

    async def update_weights(self, body: dict[str, Any]) -> None:
        """Abort what runs, if that is asked for, wait for its end, and take the weights.

        Raises:
            EngineError: they do not fit.
        """
        async with self._one_update:
            self._may_begin.clear()
            try:
                if body.get("abort_all_requests"):
                    self.abort()
                if self._running:
                    await asyncio.wait(self._running)
                await self._engine.publish(Path(body["model_path"]), self._engine.version + 1)
                self._stamp = body.get("weight_version", self._stamp)
            finally:
                self._may_begin.set()

    async def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            ContextOverflow: the prompt leaves no room.
            EngineError: the engine failed.
        """
        self.requests.append(body)
        await self._may_begin.wait()
        prompt_ids = tuple(body["input_ids"])
        segments: list[Segment] = []
        task = asyncio.ensure_future(self._sample(prompt_ids, _sampling(body), segments))
        self._running.add(task)
        try:
            reason = await task
        except asyncio.CancelledError:
            if task.cancelled() and not _being_cancelled():
                return self._answer(prompt_ids, segments, {"type": "abort", "message": "aborted"})
            task.cancel()
            raise
        finally:
            self._running.discard(task)
        generation = Generation(segments=tuple(segments), finish_reason=reason)
        self.answers.append((prompt_ids, generation))
        return self._answer(prompt_ids, segments, _finish_reason(generation))

    async def _sample(
        self, prompt_ids: tuple[int, ...], sampling: SamplingParams, segments: list[Segment]
    ) -> FinishReason:
        """Sample in chunks into ``segments``."""
        ids = list(prompt_ids)
        left, seed = sampling.max_new_tokens, sampling.seed
        while True:
            size = min(left, self._chunk_ids or left)
            part = await self._engine.generate(
                ids, replace(sampling, max_new_tokens=size, seed=seed)
            )
            segments += part.segments
            ids += part.ids
            left -= len(part.ids)
            if part.finish_reason is FinishReason.STOP or len(part.ids) < size or left < 1:
                return part.finish_reason
            seed = None if seed is None else seed + 1
            await asyncio.sleep(self._pace_s)

    def _answer(
        self, prompt_ids: tuple[int, ...], segments: list[Segment], reason: dict[str, Any]
    ) -> dict[str, Any]:
        pairs = [
            (logprob, token)
            for segment in segments
            for token, logprob in zip(segment.ids, segment.logprobs, strict=True)
        ]
        return {
            "text": "",
            "output_ids": [token for _, token in pairs],
            "meta_info": {
                "id": f"front-{len(self.requests)}",
                "finish_reason": reason,
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": len(pairs),
                "cached_tokens": 0,
                "weight_version": self._stamp or str(self._engine.version),
                "output_token_logprobs": [[logprob, token, None] for logprob, token in pairs],
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFront:
    """A front that takes requests at ``http://host:port``."""

    front: SGLangFront
    host: str
    port: int
    server: uvicorn.Server

    def stop(self) -> None:
        """Go away at once, in the middle of every answer."""
        self.server.should_exit = self.server.force_exit = True
        for listening in self.server.servers:
            listening.close()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()

    @property
    def url(self) -> str:
        """Its root URL."""
        return f"http://{self.host}:{self.port}"


@asynccontextmanager
async def running_front(
    engine: Engine, *, host: str = "127.0.0.1", port: int = 0, **options: Any
) -> AsyncIterator[RunningFront]:
    """Serve ``engine`` on ``host``.

    Args:
        engine: samples.
        host: address to listen on.
        port: 0 takes any free one.
        options: of the :class:`SGLangFront`.

    Raises:
        HostError: the port is taken, or the address is not this machine's.
        EngineError: the server did not come up.
    """
    front = SGLangFront(engine, **options)
    listener = listen(host, port, doing=f"cannot listen on {host}:{port}")
    port = listener.getsockname()[1]
    app = _app(front, engine, f"http://{host}:{port}")
    server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    running = RunningFront(front=front, host=host, port=port, server=server)
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

    @app.post("/update_weights_from_disk")
    async def update_weights_from_disk(request: Request) -> Response:
        try:
            await front.update_weights(await request.json())
        except (EngineError, KeyError, TypeError) as error:
            return _json({"success": False, "message": str(error)}, 400)
        return _json({"success": True, "message": "Succeeded", "num_paused_requests": 0})

    @app.get("/workers")
    async def workers() -> Response:
        return _json({"workers": [{"url": url}]})

    @app.post("/abort_request")
    async def abort_request() -> Response:
        front.abort()
        return Response()

    return app


def _sampling(body: dict[str, Any]) -> SamplingParams:
    params = body.get("sampling_params") or {}
    return SamplingParams(
        temperature=params.get("temperature", 1.0),
        top_p=params.get("top_p", 1.0),
        max_new_tokens=params.get("max_new_tokens", 128),
        stop_token_ids=tuple(params.get("stop_token_ids") or ()),
        seed=params.get("sampling_seed"),
    )


def _finish_reason(generation: Generation) -> dict[str, Any]:
    if generation.finish_reason is FinishReason.LENGTH:
        return {"type": "length", "length": len(generation.ids)}
    return {"type": "stop", "matched": generation.ids[-1] if generation.ids else None}


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
