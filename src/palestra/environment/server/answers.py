"""The answer of ``POST /run``, put together from an episode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from palestra.records import EpisodeResult, Message, Outcome
from palestra.wire import (
    RunRequest,
    RunResponse,
    episode_to_wire,
    eval_report,
    message_to_wire,
    timings_to_wire,
)


def run_response(
    request: RunRequest,
    episode: EpisodeResult,
    *,
    model: str,
    completions: Sequence[Mapping[str, Any]] = (),
) -> RunResponse:
    """Build the answer.

    Args:
        request: is echoed in part.
        episode: what happened.
        model: name of the policy.
        completions: the policy's answers as they came, one for each assistant message,
            whose token fields are relayed; empty where the request asks for none.
    """
    reward = episode.reward
    params = request.responses_create_params.model_dump(exclude_unset=True)
    return RunResponse(
        reward=0.0 if reward is None else reward,
        instance_id=episode.instance_id,
        responses_create_params={"input": [], **params},
        messages=[message_to_wire(m) for m in episode.messages],
        response=_response(episode, params, model=model, completions=completions),
        metadata=eval_report(episode.instance_id, episode.verdict) if episode.verdict else {},
        info={
            "exit_status": episode.exit_status,
            "agent_metrics": agent_metrics(episode),
            **({"error": episode.error} if episode.error else {}),
        },
        mask_sample=reward is None,
        outcome=episode.outcome,
        error=episode.error,
        patch=episode.patch,
        submission=episode.submission,
        timings=timings_to_wire(episode.timings),
        episode=episode_to_wire(episode),
    )


def agent_metrics(episode: EpisodeResult) -> dict[str, float]:
    """One episode under the names that Miles' hook averages; the unknown is left out."""
    timings = episode.timings
    metrics: dict[str, float | None] = {
        "agent_run_time": timings.agent_s,
        "total_time": timings.total_s,
        "model_query_time_sum": timings.model_s,
        "env_execution_time_sum": timings.env_s,
        "eval_time": timings.eval_s,
        "model_time_ratio": _ratio(timings.model_s, timings.total_s),
        "env_time_ratio": _ratio(timings.env_s, timings.total_s),
        "eval_time_ratio": _ratio(timings.eval_s, timings.total_s),
    }
    if episode.outcome is not Outcome.INFRA_ERROR:
        turns = episode.num_turns
        metrics |= {
            "turns": turns,
            "tool_calls": episode.num_tool_calls,
            "time_per_turn": _ratio(timings.agent_s, turns),
            "model_query_time_avg": _ratio(timings.model_s, turns),
            "env_execution_time_avg": _ratio(timings.env_s, turns),
            "overhead_time": _overhead_s(episode),
        }
    return {name: value for name, value in metrics.items() if value is not None}


def _overhead_s(episode: EpisodeResult) -> float | None:
    """What was neither model nor commands nor tests."""
    timings = episode.timings
    if timings.total_s is None:
        return None
    accounted = (timings.model_s, timings.env_s, timings.eval_s)
    return max(0.0, timings.total_s - sum(part for part in accounted if part is not None))


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _response(
    episode: EpisodeResult,
    params: Mapping[str, Any],
    *,
    model: str,
    completions: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A Responses-API object: what came after the system's and the user's first message."""
    tokens = iter([_token_fields(completion) for completion in completions])
    output: list[dict[str, Any]] = []
    for index, message in enumerate(episode.messages[2:]):
        items = list(_items(message, f"msg_{episode.episode_id}_{index}"))
        if message.role == "assistant" and items:
            items[-1].update(next(tokens, {}))
        output += items
    return {
        "id": f"resp_{episode.episode_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": model,
        "output": output,
        "temperature": params.get("temperature"),
        "top_p": params.get("top_p"),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "error": None,
        "incomplete_details": None,
        "instructions": None,
    }


def _items(message: Message, item_id: str) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {
            "type": "function_call_output",
            "call_id": message.tool_call_id,
            "output": message.content,
        }
    elif message.role != "assistant":
        yield {"type": "message", "role": message.role, "content": message.content}
    else:
        if message.content or not message.tool_calls:
            text = {"type": "output_text", "text": message.content, "annotations": []}
            yield {
                "id": item_id,
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [text],
            }
        for call in message.tool_calls:
            yield {
                "id": call.id,
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "status": "completed",
            }


def _token_fields(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Gym's names for the exact ids and logprobs of an answer, where it carries them."""
    try:
        choice = completion["choices"][0]
        fields = {
            "prompt_token_ids": completion.get("prompt_token_ids", choice.get("prompt_token_ids")),
            "generation_token_ids": choice.get("token_ids"),
            "generation_log_probs": _logprobs(choice.get("logprobs")),
        }
    except (KeyError, IndexError, TypeError, AttributeError):
        return {}
    return {name: value for name, value in fields.items() if value is not None}


def _logprobs(logprobs: Any) -> list[float] | None:
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return None if content is None else [entry["logprob"] for entry in content]
