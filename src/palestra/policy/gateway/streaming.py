"""Answers as server-sent events.

An engine answers whole turns, so a stream holds a turn's text in pieces once all
of it was sampled. Until then comments keep the connection open, and show when
its client is gone: that cancels the sampling, and nothing is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from palestra.errors import PalestraError
from palestra.policy.gateway.answers import Completion, completion_to_wire, logprobs_to_wire
from palestra.policy.gateway.refusals import refusal
from palestra.policy.rendering.protocol import Tokenizer
from palestra.serving import while_connected

PIECE_CHARS = 64
DONE = b"data: [DONE]\n\n"
_COMMENT = b": sampling\n\n"

Write = Callable[[Completion], Iterable[bytes]]


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


def pieces(text: str) -> Iterator[str]:
    """A text in parts; characters stay whole."""
    for start in range(0, len(text), PIECE_CHARS):
        yield text[start : start + PIECE_CHARS]


async def streamed(
    request: Request, work: Coroutine[Any, Any, Completion], write: Write, *, quiet_s: float
) -> Response:
    """Answer with what ``write`` makes of the work's result.

    Args:
        request: whose client is watched.
        work: is cancelled when the client goes away.
        write: the events of a result.
        quiet_s: how long the stream may wait to begin, and between comments.

    Raises:
        ClientGone: the client went away before the stream began.
        PalestraError: the work failed before the stream began.
    """
    task = asyncio.ensure_future(work)
    begun = False
    try:
        await while_connected(request, _settled(task, quiet_s))
        if task.done():
            task.result()
        begun = True
    finally:
        if not begun:
            await _ended(task)
    return StreamingResponse(_events(request, task, write, quiet_s), media_type="text/event-stream")


async def _settled(task: asyncio.Task[Completion], timeout_s: float) -> None:
    await asyncio.wait({task}, timeout=timeout_s)


async def _events(
    request: Request, task: asyncio.Task[Completion], write: Write, quiet_s: float
) -> AsyncIterator[bytes]:
    try:
        while not task.done():
            yield _COMMENT
            await while_connected(request, _settled(task, quiet_s))
        for part in write(task.result()):
            yield part
    except PalestraError as error:
        yield event(refusal(error)[1])
    finally:
        await _ended(task)


async def _ended(task: asyncio.Task[Completion]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


def chat_events(
    completion: Completion,
    *,
    model: str,
    tokenizer: Tokenizer,
    logprobs: bool,
    with_ids: bool,
    with_usage: bool,
) -> Iterator[bytes]:
    """A chat completion as the chunks of its stream."""
    whole = completion_to_wire(completion, model=model, with_ids=with_ids)
    choice = whole["choices"][0]
    message = choice["message"]
    head = {k: whole[k] for k in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        part = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return event({**head, "choices": [part | more]})

    yield chunk({"role": "assistant", "content": ""})
    for text in pieces(message.get("reasoning_content") or ""):
        yield chunk({"reasoning_content": text})
    for text in pieces(message["content"] or ""):
        yield chunk({"content": text})
    for index, call in enumerate(message.get("tool_calls", ())):
        yield chunk({"tool_calls": [{"index": index, **call}]})
    more: dict[str, Any] = {}
    if logprobs:
        more["logprobs"] = logprobs_to_wire(completion.generation, tokenizer)
    if with_ids:
        head["prompt_token_ids"] = whole["prompt_token_ids"]
        more["token_ids"] = choice["token_ids"]
    yield chunk({}, choice["finish_reason"], **more)
    if with_usage:
        yield event({**head, "choices": [], "usage": whole["usage"]})
    yield DONE
