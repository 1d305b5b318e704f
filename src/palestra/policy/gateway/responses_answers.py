"""An answer as an object of the Responses API, whole or as the events of its stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from palestra.policy.gateway.answers import Completion
from palestra.policy.gateway.responses_requests import ResponsesRequest
from palestra.policy.gateway.streaming import event, pieces


def response_to_wire(
    completion: Completion, request: ResponsesRequest, *, response_id: str, model: str
) -> dict[str, Any]:
    """The ``response`` object, with the exact ids in its last item on request."""
    output = _output(completion)
    if request.return_token_ids:
        output[-1] |= {
            "prompt_token_ids": completion.prompt_ids,
            "generation_token_ids": completion.generation.ids,
            "generation_log_probs": completion.generation.logprobs,
        }
    cut = completion.answer.finish_reason == "length"
    num_prompt, num_sampled = len(completion.prompt_ids), len(completion.generation.ids)
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "model": model,
        "instructions": request.instructions,
        "previous_response_id": request.previous_response_id,
        "max_output_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": [tool.model_dump(exclude_unset=True) for tool in request.tools or ()],
        "tool_choice": request.tool_choice or "auto",
        "parallel_tool_calls": True,
        "metadata": {},
        "output": output,
        "usage": {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": completion.generation.cached_tokens or 0},
            "output_tokens": num_sampled,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_sampled,
        },
    }


def response_events(response: dict[str, Any]) -> Iterator[bytes]:
    """The events of a stream whose end is ``response``."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    steps: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(response["output"]):
        steps += _item_steps(index, item)
    steps.append({"type": f"response.{response['status']}", "response": response})
    for number, step in enumerate(steps):
        yield event({**step, "sequence_number": number}, step["type"])


def _output(completion: Completion) -> list[dict[str, Any]]:
    answer = completion.answer
    status = "incomplete" if answer.finish_reason == "length" else "completed"
    items: list[dict[str, Any]] = []
    if answer.reasoning is not None:
        part = {"type": "reasoning_text", "text": answer.reasoning}
        items.append({"type": "reasoning", "id": _id("rs"), "summary": [], "content": [part]})
    if answer.message.content or not answer.message.tool_calls:
        text = {"type": "output_text", "text": answer.message.content, "annotations": []}
        items.append(
            {
                "type": "message",
                "id": _id("msg"),
                "role": "assistant",
                "status": status,
                "content": [text],
            }
        )
    items += [
        {
            "type": "function_call",
            "id": _id("fc"),
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
            "status": "completed",
        }
        for call in answer.message.tool_calls
    ]
    return items


def _item_steps(index: int, item: dict[str, Any]) -> Sequence[dict[str, Any]]:
    at = {"item_id": item["id"], "output_index": index}
    added = {"type": "response.output_item.added", "output_index": index}
    done = {"type": "response.output_item.done", "output_index": index, "item": item}
    if item["type"] == "function_call":
        arguments = item["arguments"]
        return [
            added | {"item": {**item, "arguments": "", "status": "in_progress"}},
            {"type": "response.function_call_arguments.delta", **at, "delta": arguments},
            {
                "type": "response.function_call_arguments.done",
                **at,
                "name": item["name"],
                "arguments": arguments,
            },
            done,
        ]
    part = item["content"][0]
    kind = part["type"]
    at["content_index"] = 0
    more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
    return [
        added | {"item": {**item, "content": [], "status": "in_progress"}},
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *(
            {"type": f"response.{kind}.delta", **at, "delta": text, **more}
            for text in pieces(part["text"])
        ),
        {"type": f"response.{kind}.done", **at, "text": part["text"], **more},
        {"type": "response.content_part.done", **at, "part": part},
        done,
    ]


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
