"""OpenAI's endpoints, within a session and without one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from palestra.policy.gateway.answers import Completion, completion_to_wire, logprobs_to_wire
from palestra.policy.gateway.asks import Attempt
from palestra.policy.gateway.gateway import Gateway
from palestra.policy.gateway.requests import BadRequest, read_chat_request
from palestra.policy.gateway.responses_answers import response_events, response_to_wire
from palestra.policy.gateway.responses_requests import ResponsesRequest, read_responses_request
from palestra.policy.gateway.said import Line
from palestra.policy.gateway.streaming import chat_events, streamed
from palestra.serving import while_connected


def json_response(body: Any, *, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def attempt_of(request: Request) -> Attempt:
    """What a request's headers say of having been sent before."""
    count = request.headers.get("x-stainless-retry-count", "")
    return Attempt(
        key=request.headers.get("idempotency-key") or None,
        repeated=count.isdecimal() and int(count) > 0,
    )


def add_chat_completions(app: FastAPI, gateway: Gateway) -> None:
    """``POST /v1/chat/completions``."""

    async def complete(request: Request) -> Response:
        session_id = request.path_params.get("session_id")
        chat = read_chat_request(await request.body())
        with_logprobs = bool(chat.logprobs)
        work = gateway.complete(chat.ask(attempt_of(request)), session_id)
        if chat.stream:
            return await streamed(
                request,
                work,
                lambda completion: chat_events(
                    completion,
                    model=gateway.model_name,
                    tokenizer=gateway.tokenizer,
                    logprobs=with_logprobs,
                    with_ids=chat.return_token_ids,
                    with_usage=chat.stream_options is not None
                    and chat.stream_options.include_usage,
                ),
                quiet_s=gateway.quiet_s,
            )
        completion = await while_connected(request, work)
        body = completion_to_wire(
            completion, model=gateway.model_name, with_ids=chat.return_token_ids
        )
        if with_logprobs:
            body["choices"][0]["logprobs"] = logprobs_to_wire(
                completion.generation, gateway.tokenizer
            )
        return json_response(body)

    _add_both(app, "/v1/chat/completions", complete)


def add_responses(app: FastAPI, gateway: Gateway) -> None:
    """``POST /v1/responses``."""

    async def respond(request: Request) -> Response:
        session_id = request.path_params.get("session_id")
        wanted = read_responses_request(await request.body())
        lines = [*_earlier_lines(gateway, wanted, session_id), *wanted.lines()]
        response_id = f"resp_{uuid.uuid4().hex}"

        def finish(completion: Completion) -> dict[str, Any]:
            if session_id is not None and wanted.store is not False:
                said = gateway.ledger.get(session_id).said
                answer = (completion.answer.message, completion.answer.reasoning)
                said.keep(response_id, [*lines, answer])
            return response_to_wire(
                completion, wanted, response_id=response_id, model=gateway.model_name
            )

        work = gateway.complete(wanted.ask(lines, attempt_of(request)), session_id)
        if wanted.stream:
            return await streamed(
                request,
                work,
                lambda done: response_events(finish(done)),
                quiet_s=gateway.quiet_s,
            )
        return json_response(finish(await while_connected(request, work)))

    _add_both(app, "/v1/responses", respond)


def add_models(app: FastAPI, gateway: Gateway) -> None:
    """``GET /v1/models``."""
    created_s = int(time.time())

    def model() -> dict[str, Any]:
        return {
            "id": gateway.model_name,
            "object": "model",
            "created": created_s,
            "owned_by": "palestra",
            "max_model_len": gateway.max_context,
        }

    @app.get("/v1/models")
    async def plain_models() -> Response:
        return json_response({"object": "list", "data": [model()]})

    @app.get("/s/{session_id}/v1/models")
    async def session_models(session_id: str) -> Response:
        gateway.ledger.get(session_id)
        return json_response({"object": "list", "data": [model()]})


def _add_both(app: FastAPI, path: str, answer: Callable[[Request], Awaitable[Response]]) -> None:
    # Plain routes: these read their own bodies, and what FastAPI puts around a
    # function costs a fifth of a millisecond each time.
    app.add_route(path, answer, methods=["POST"])
    app.add_route(f"/s/{{session_id}}{path}", answer, methods=["POST"])


def _earlier_lines(
    gateway: Gateway, wanted: ResponsesRequest, session_id: str | None
) -> list[Line]:
    if wanted.previous_response_id is None:
        return []
    if session_id is not None:
        lines = gateway.ledger.get(session_id).said.recall(wanted.previous_response_id)
        if lines is not None:
            return lines
    raise BadRequest(
        f"previous_response_id: {wanted.previous_response_id!r} is not known here",
        field="previous_response_id",
        status=400,
        hint="responses are kept within their session, unless store is false; "
        "or send the items themselves",
    )
