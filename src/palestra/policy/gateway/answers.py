"""What was sampled, read as a message, and put into OpenAI's shape."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palestra.policy.gateway.history import Conversation
from palestra.policy.rendering.protocol import ParsedResponse, Renderer, Tokenizer
from palestra.records import FinishReason, Generation, Message, ToolCall
from palestra.wire import message_to_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The assistant message that a generation is sent as."""

    message: Message
    reasoning: str | None
    finish_reason: str  # stop, length or tool_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answered request: the answer and the exact ids around it."""

    answer: Answer
    prompt_ids: tuple[int, ...]
    generation: Generation


def read_answer(
    renderer: Renderer,
    generation: Generation,
    *,
    conversation: Conversation,
    prompt_ids: Sequence[int],
    stop_strings: Sequence[str],
) -> Answer:
    """Decode a generation. Text after a stop string is cut; the sampled ids are not touched."""
    tools = [dict(tool) for tool in conversation.tools]
    parsed = renderer.parse_response(
        list(generation.ids), tools=tools or None, prompt_ids=list(prompt_ids)
    )
    content, calls = _split_calls(parsed, offered=bool(tools))
    cut = min((at for stop in stop_strings if (at := content.find(stop)) >= 0), default=None)
    if cut is not None:
        content, calls = content[:cut], ()
    if calls:
        reason = "tool_calls"
    elif cut is not None or generation.finish_reason is FinishReason.STOP:
        reason = "stop"
    else:
        reason = "length"
    return Answer(
        message=Message(role="assistant", content=content, tool_calls=calls),
        reasoning=parsed.reasoning_content or None,
        finish_reason=reason,
    )


def completion_to_wire(completion: Completion, *, model: str, with_ids: bool) -> dict[str, Any]:
    """OpenAI's ``chat.completion`` object, with the exact ids on request."""
    answer, sampled = completion.answer, completion.generation.ids
    message = message_to_wire(answer.message)
    if answer.message.tool_calls and not answer.message.content:
        message["content"] = None
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    body: dict[str, Any] = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage_to_wire(completion),
    }
    if with_ids:
        body["prompt_token_ids"] = completion.prompt_ids
        choice["token_ids"] = sampled
    return body


def usage_to_wire(completion: Completion) -> dict[str, Any]:
    """OpenAI's ``usage``; what was cached is told where the engine tells it."""
    num_prompt, num_sampled = len(completion.prompt_ids), len(completion.generation.ids)
    usage: dict[str, Any] = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_sampled,
        "total_tokens": num_prompt + num_sampled,
    }
    if completion.generation.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": completion.generation.cached_tokens}
    return usage


def logprobs_to_wire(generation: Generation, tokenizer: Tokenizer) -> dict[str, Any]:
    """OpenAI's ``logprobs`` of a choice, one entry per sampled id.

    ``bytes`` is null for a token that is only part of a character.
    """
    entries = []
    for token_id, logprob in zip(generation.ids, generation.logprobs, strict=True):
        text = tokenizer.decode(
            [token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        whole = "\ufffd" not in text
        entries.append(
            {
                "token": text,
                "logprob": logprob,
                "bytes": list(text.encode()) if whole else None,
                "top_logprobs": [],
            }
        )
    return {"content": entries, "refusal": None}


def _split_calls(parsed: ParsedResponse, *, offered: bool) -> tuple[str, tuple[ToolCall, ...]]:
    """The text and the well-formed calls; where no tools were offered, calls are text."""
    calls = []
    # Parsers differ in whether a malformed call stays in the content; here it always does.
    content = parsed.content
    for attempt in parsed.tool_calls:
        if offered and attempt.status == "ok" and attempt.name:
            calls.append(
                ToolCall(
                    id=f"call_{uuid.uuid4().hex[:24]}",
                    name=attempt.name,
                    arguments=_arguments(attempt.arguments),
                )
            )
        elif attempt.raw not in content:
            content = f"{content}\n{attempt.raw}" if content else attempt.raw
    return content, tuple(calls)


def _arguments(arguments: dict[str, Any] | str | None) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments or {}, ensure_ascii=False)
