"""HTTP in front of the gateway: OpenAI's endpoints, and the sessions of the ledger."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from palestra.errors import ContextOverflow, EngineError, PalestraError
from palestra.policy.gateway.answers import completion_to_wire, logprobs_to_wire
from palestra.policy.gateway.gateway import Gateway
from palestra.policy.gateway.ledger import LedgerFull, SessionLimits, UnknownSession
from palestra.policy.gateway.requests import BadRequest, malformed, read_chat_request
from palestra.serving import ClientGone, while_connected
from palestra.wire import SessionRequest, SessionResponse, trace_to_wire

Result = TypeVar("Result")

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
    _add_completions(app, gateway)
    _add_sessions(app, gateway, public_url)

    @app.get("/health")
    async def health() -> Response:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await gateway.engine.health()
        except TimeoutError as error:
            raise EngineError(f"no sign of health within {HEALTH_TIMEOUT_S:g} s") from error
        return _json(
            {
                "status": "ok",
                "model": gateway.model_name,
                "policy_version": gateway.engine.version,
                "sessions": len(gateway.ledger),
            }
        )

    return app


def _add_completions(app: FastAPI, gateway: Gateway) -> None:
    async def complete(request: Request, session_id: str | None) -> Response:
        chat = read_chat_request(await request.body())
        completion = await while_connected(request, gateway.complete(chat, session_id))
        body = completion_to_wire(
            completion, model=gateway.model_name, with_ids=chat.return_token_ids
        )
        if chat.logprobs:
            body["choices"][0]["logprobs"] = logprobs_to_wire(
                completion.generation, gateway.tokenizer
            )
        return _json(body)

    def models() -> Response:
        model = {
            "id": gateway.model_name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "palestra",
            "max_model_len": gateway.max_context,
        }
        return _json({"object": "list", "data": [model]})

    @app.post("/v1/chat/completions")
    async def plain_completion(request: Request) -> Response:
        return await complete(request, None)

    @app.post("/s/{session_id}/v1/chat/completions")
    async def session_completion(request: Request, session_id: str) -> Response:
        return await complete(request, session_id)

    @app.get("/v1/models")
    async def plain_models() -> Response:
        return models()

    @app.get("/s/{session_id}/v1/models")
    async def session_models(session_id: str) -> Response:
        gateway.ledger.get(session_id)
        return models()


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
        return _json(answer.model_dump())

    @app.get("/sessions/{session_id}")
    async def read_session(session_id: str, take: bool = False) -> Response:
        ledger = gateway.ledger
        trace = ledger.take(session_id) if take else ledger.get(session_id).trace
        return _json(trace_to_wire(trace))

    @app.delete("/sessions/{session_id}")
    async def drop_session(session_id: str) -> Response:
        gateway.ledger.drop(session_id)
        return Response(status_code=204)


async def _explain(_: Request, error: Exception) -> Response:
    """Say what went wrong in OpenAI's shape; ``code`` and ``type`` are for programs."""
    status, kind, code = _classify(error)
    body = {"message": str(error), "type": kind, "code": code}
    if isinstance(error, BadRequest):
        body["param"] = error.field
    return _json({"error": body}, status=status)


async def _bad_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return await _explain(request, BadRequest(f"{field}: {first['msg']}", field=field, status=422))


async def _nobody_there(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _classify(error: Exception) -> tuple[int, str, str]:
    match error:
        case BadRequest():
            code = "malformed_request" if error.status == 422 else "unsupported_option"
            return error.status, "invalid_request_error", code
        case ContextOverflow():
            return 400, "invalid_request_error", "context_length_exceeded"
        case UnknownSession():
            return 404, "invalid_request_error", "unknown_session"
        case LedgerFull():
            return 503, "LedgerFull", "too_many_sessions"
        case EngineError():
            return 503, type(error).__name__, "engine_error"
        case _:
            return 503, type(error).__name__, "infrastructure_error"


def _json(body: Any, *, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")
