"""HTTP in front of the gateway: OpenAI's endpoints, and the sessions of the ledger."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from palestra.errors import EngineError, PalestraError
from palestra.policy.gateway.endpoints import (
    add_chat_completions,
    add_models,
    add_responses,
    json_response,
)
from palestra.policy.gateway.gateway import Gateway
from palestra.policy.gateway.ledger import SessionLimits
from palestra.policy.gateway.refusals import refusal
from palestra.policy.gateway.requests import BadRequest, malformed
from palestra.serving import ClientGone
from palestra.wire import SessionRequest, SessionResponse, trace_to_wire

HEALTH_TIMEOUT_S = 10.0
CLIENT_GONE = 499  # nobody reads it; the access log does


def create_app(gateway: Gateway, *, public_url: str | None = None) -> FastAPI:
    """The application that serves ``gateway``.

    Args:
        gateway: answers.
        public_url: root under which agents reach this server; ``None``: the one
            under which a session's opener reached it.
    """
    app = FastAPI(title="Palestra gateway", docs_url=None, redoc_url=None)
    app.add_exception_handler(PalestraError, _explain)
    app.add_exception_handler(RequestValidationError, _bad_parameter)
    app.add_exception_handler(ClientGone, _nobody_there)
    add_chat_completions(app, gateway)
    add_responses(app, gateway)
    add_models(app, gateway)
    _add_sessions(app, gateway, public_url)

    @app.get("/health")
    async def health() -> Response:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await gateway.engine.health()
        except TimeoutError as error:
            raise EngineError(f"no sign of health within {HEALTH_TIMEOUT_S:g} s") from error
        return json_response(
            {
                "status": "ok",
                "model": gateway.model_name,
                "policy_version": gateway.engine.version,
                "sessions": len(gateway.ledger),
            }
        )

    return app


def _add_sessions(app: FastAPI, gateway: Gateway, public_url: str | None) -> None:
    @app.post("/sessions")
    async def open_session(request: Request) -> Response:
        try:
            wanted = SessionRequest.model_validate_json(await request.body() or b"{}")
        except ValidationError as error:
            raise malformed(error) from None
        session = gateway.ledger.open(SessionLimits(**wanted.model_dump()))
        root = (public_url or str(request.base_url)).rstrip("/")
        answer = SessionResponse(
            session_id=session.session_id, base_url=f"{root}/s/{session.session_id}/v1"
        )
        return json_response(answer.model_dump())

    @app.get("/sessions/{session_id}")
    async def read_session(session_id: str, take: bool = False) -> Response:
        ledger = gateway.ledger
        trace = ledger.take(session_id) if take else ledger.get(session_id).trace
        return json_response(trace_to_wire(trace))

    @app.delete("/sessions/{session_id}")
    async def drop_session(session_id: str) -> Response:
        gateway.ledger.drop(session_id)
        return Response(status_code=204)


async def _explain(_: Request, error: Exception) -> Response:
    status, body = refusal(error)
    return json_response(body, status=status)


async def _bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return await _explain(request, BadRequest(f"{field}: {first['msg']}", field=field, status=422))


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
