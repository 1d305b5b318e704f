"""HTTP in front of the episode service."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from palestra.environment.server.auth import TokenGate
from palestra.environment.server.endpoints import BadRequest
from palestra.environment.server.metrics import CONTENT_TYPE
from palestra.environment.server.repeats import Stopped
from palestra.environment.server.service import EpisodeService, ServerStopping
from palestra.serving import ClientGone, while_connected
from palestra.wire import PrefetchRequest, ReachRequest, RunRequest

Result = TypeVar("Result")

CLIENT_HEADER = "X-Palestra-Client"
"""Says whose request it is, for turns in the queue."""
CLIENT_GONE = 499  # nobody reads it; the access log does
_PLAINER = {
    "missing": "this field is missing",
    "model_type": "the body must be a JSON object: a task's row and responses_create_params",
}
GYM_AGENT = "mini_swe_agent"
GYM_SERVER = "mini_swe_simple_agent"


def create_app(service: EpisodeService, *, token: str | None = None) -> FastAPI:
    """The application that serves ``service``.

    Args:
        service: answers.
        token: every request must carry it; ``None``: none needs to.
    """
    app = FastAPI(title="Palestra environment", docs_url=None, redoc_url=None)
    app.add_exception_handler(BadRequest, _bad_request)
    app.add_exception_handler(ValidationError, _malformed)
    app.add_exception_handler(ServerStopping, _unavailable)
    app.add_exception_handler(Stopped, _unavailable)
    app.add_exception_handler(ClientGone, _nobody_there)
    if token is not None:
        app.add_middleware(TokenGate, token=token)

    @app.post("/run")
    async def run(request: Request) -> Response:
        wanted = RunRequest.model_validate_json(await request.body())
        key = request.headers.get("idempotency-key") or None
        client = request.headers.get(CLIENT_HEADER, "")
        work = service.answer(wanted, idempotency_key=key, client=client)
        answer = await while_connected(request, work)
        return Response(answer, media_type="application/json")

    @app.post("/prefetch")
    async def prefetch(request: Request) -> Response:
        wanted = PrefetchRequest.model_validate_json(await request.body())
        return _json({"num_images": service.prefetch(wanted)}, status=202)

    @app.post("/reach")
    async def reach_policy(request: Request) -> Response:
        wanted = ReachRequest.model_validate_json(await request.body())
        return _json((await service.reach(wanted.url)).model_dump())

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok", "agent": service.agent_name})

    @app.get("/status")
    async def status() -> Response:
        return _json(service.status())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics(), media_type=CONTENT_TYPE)

    @app.get("/global_config_dict_yaml")
    async def gym_config(request: Request) -> Response:
        # Gym sends YAML as a JSON string; JSON is YAML too.
        return _json(json.dumps(_gym_config(request, service)))

    return app


def _gym_config(request: Request, service: EpisodeService) -> dict[str, Any]:
    """What Gym's client looks up: its agent, at the address under which it found us."""
    agent = {
        "entrypoint": "app.py",
        "host": request.url.hostname,
        "port": request.url.port or (443 if request.url.scheme == "https" else 80),
    }
    return {
        GYM_SERVER: {"responses_api_agents": {GYM_AGENT: agent}},
        "policy_model_name": service.policy_model_name,
    }


async def _bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    detail = {"loc": ["body", error.field], "msg": str(error), "type": "value_error"}
    return _json({"detail": [detail]}, status=422)


async def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    found = error.errors(include_url=False, include_input=False, include_context=False)
    detail = [
        {**one, "loc": ["body", *one["loc"]], "msg": _PLAINER.get(one["type"], one["msg"])}
        for one in found
    ]
    return _json({"detail": detail}, status=422)


async def _unavailable(_: Request, __: Exception) -> Response:
    return _json({"detail": "the server is stopping"}, status=503)


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _json(body: Any, *, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")
