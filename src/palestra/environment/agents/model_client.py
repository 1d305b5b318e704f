"""Client of the policy: OpenAI's chat completions, with retries and typed failures."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import orjson

from palestra.environment.agents.protocol import ModelEndpoint
from palestra.errors import ContextOverflow, ModelUnavailable
from palestra.keepalive import socket_options, vanished

CONNECT_TIMEOUT_S = 10.0
BACKOFF_S = (0.2, 1.0, 4.0)
"""Pauses before the second, third and fourth try."""

_OVERFLOW_CODE = "context_length_exceeded"
# Engines that are spoken to without a gateway say it in words only (vLLM, SGLang).
_OVERFLOW_WORDS = ("maximum context length", "model's context length", "maximum allowed length")
# What a client of ours may not set: the agent does, or could not read the answer.
_RESERVED = frozenset({"model", "messages", "tools", "tool_choice", "stream", "n"})
_TOO_MANY_REQUESTS = 429
_MESSAGE_CHARS = 500
_UNREACHABLE = "is it running, and can this machine reach that address?"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledTool:
    """The function call of a tool call, as mini-swe-agent reads it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionToolCall:
    """A tool call, as mini-swe-agent reads it."""

    id: str
    function: CalledTool


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer of the policy.

    Attributes:
        message: is sent back with the next request as it came.
        finish_reason: as it came.
        tool_calls: of the message.
        num_tokens: of the answer, without the prompt; ``None`` where it does not say.
    """

    message: Mapping[str, Any]
    finish_reason: str | None
    tool_calls: tuple[CompletionToolCall, ...]
    num_tokens: int | None = None

    @property
    def content(self) -> str:
        """The text, empty where the message only calls tools."""
        return self.message.get("content") or ""


def tls_context() -> ssl.SSLContext:
    """Trust for https endpoints; made once, since reading the certificates takes 10 ms."""
    return httpx.create_ssl_context()


class ModelClient:
    """Asks one endpoint for completions; an async context manager.

    Args:
        endpoint: where and how to ask.
        tls: trust for https endpoints, shared by all clients of an agent.
        backoff_s: pauses between tries; their number is the number of retries.
    """

    def __init__(
        self,
        endpoint: ModelEndpoint,
        *,
        tls: ssl.SSLContext,
        backoff_s: Sequence[float] = BACKOFF_S,
    ) -> None:
        self._endpoint = endpoint
        self._backoff_s = backoff_s
        self._url = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        self._fields = {k: v for k, v in endpoint.sampling.items() if k not in _RESERVED}
        key = endpoint.api_key
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(
                endpoint.timeout_s, connect=min(CONNECT_TIMEOUT_S, endpoint.timeout_s)
            ),
            verify=tls,
            # A proxy for the internet has no business between us and a policy next door.
            trust_env=endpoint.base_url.startswith("https://"),
            mounts=_next_door(tls),
        )

    async def __aenter__(self) -> ModelClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def complete(self, messages: Sequence[Mapping[str, Any]], **extra: Any) -> Completion:
        """The policy's answer to ``messages``.

        Args:
            messages: OpenAI chat messages.
            extra: further fields of the request (``tools``, …).

        Raises:
            ContextOverflow: the conversation no longer fits.
            ModelUnavailable: no connection after all retries, no answer in time, a
                refusal, or an answer that is no chat completion.
        """
        body = orjson.dumps(
            {
                **self._fields,
                **extra,
                "model": self._endpoint.model,
                "messages": messages,
            }
        )
        response = await self._post(body)
        answer = _parse(response.content)
        completion = _completion(answer)
        if completion is None:
            raise self._failure("answered something that is no chat completion")
        if self._endpoint.on_completion is not None:
            self._endpoint.on_completion(answer)
        return completion

    async def _post(self, body: bytes) -> httpx.Response:
        for pause_s in (*self._backoff_s, None):
            try:
                response = await self._http.post(
                    self._url, content=body, headers={"Content-Type": "application/json"}
                )
            except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
                # It is at work: asking again would only double that.
                raise self._failure(f"did not answer in {self._endpoint.timeout_s:g} s") from error
            except httpx.TransportError as error:
                if isinstance(error, (httpx.ReadError, httpx.WriteError)) and vanished(error):
                    # An answer was sampled and lost: a second one would stand beside it.
                    raise self._failure("vanished while it was asked") from error
                reason = f"cannot be reached: {error or type(error).__name__}"
                if pause_s is None:
                    raise self._failure(reason, hint=_UNREACHABLE) from error
            except (httpx.InvalidURL, httpx.HTTPError) as error:
                raise self._failure(f"cannot be asked: {error}") from error
            else:
                if response.status_code == httpx.codes.OK:
                    return response
                if pause_s is None or not _worth_retrying(response.status_code):
                    raise self._refusal(response)
            await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _refusal(self, response: httpx.Response) -> ContextOverflow | ModelUnavailable:
        error = _parse(response.content)
        inner = error.get("error")
        if isinstance(inner, dict):
            error = inner
        message = error.get("message") or error.get("detail") or response.text
        message = str(message)[:_MESSAGE_CHARS]
        if response.status_code == httpx.codes.BAD_REQUEST and (
            _OVERFLOW_CODE in (error.get("code"), error.get("type"))
            or any(words in message for words in _OVERFLOW_WORDS)
        ):
            return ContextOverflow(message)
        return self._failure(f"answered {response.status_code}: {message}")

    def _failure(self, what: str, *, hint: str | None = None) -> ModelUnavailable:
        return ModelUnavailable(f"the policy endpoint {self._endpoint.base_url} {what}", hint=hint)


def _next_door(tls: ssl.SSLContext) -> dict[str, httpx.AsyncBaseTransport]:
    """Connections to a policy in the own network, which may vanish without a word."""
    transport = httpx.AsyncHTTPTransport(
        verify=tls, socket_options=socket_options(), trust_env=False
    )
    return {"http://": transport}


def _worth_retrying(status: int) -> bool:
    return status >= httpx.codes.INTERNAL_SERVER_ERROR or status == _TOO_MANY_REQUESTS


def _parse(content: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _completion(answer: Mapping[str, Any]) -> Completion | None:
    try:
        choice = answer["choices"][0]
        message = {k: v for k, v in choice["message"].items() if v is not None}
        calls = tuple(map(_tool_call, message.get("tool_calls") or ()))
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(message.get("content", ""), str):
        return None
    if calls:
        message.setdefault("content", None)
    else:
        message.pop("tool_calls", None)
        message.setdefault("content", "")
    message["role"] = "assistant"
    return Completion(
        message=message,
        finish_reason=choice.get("finish_reason"),
        tool_calls=calls,
        num_tokens=_num_tokens(answer),
    )


def _num_tokens(answer: Mapping[str, Any]) -> int | None:
    usage = answer.get("usage")
    number = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return number if isinstance(number, int) else None


def _tool_call(call: Mapping[str, Any]) -> CompletionToolCall:
    function = call["function"]
    arguments = function.get("arguments") or ""
    return CompletionToolCall(
        id=str(call.get("id") or ""),
        function=CalledTool(
            name=str(function["name"]),
            arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
        ),
    )
