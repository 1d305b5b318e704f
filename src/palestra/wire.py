"""The bodies that cross HTTP, and their translation from and to records.

Two conversations: a trainer (ours, Gym's, Miles') with the environment server
(``POST /run``), and the scheduler with the gateway (sessions and traces).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from palestra.records import (
    EpisodeResult,
    Message,
    Outcome,
    TestSplit,
    Timings,
    ToolCall,
    Trace,
    Verdict,
)

# --- POST /run ----------------------------------------------------------------


class ResponsesCreateParams(BaseModel):
    """The part of a Responses-API request that the environment reads; the rest is echoed."""

    model_config = ConfigDict(extra="allow")

    input: Any = Field(default_factory=list)
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_output_tokens: int | None = Field(None, gt=0)


class WireSamplingParams(BaseModel):
    """SGLang's names; what it does not name is relayed as it stands."""

    model_config = ConfigDict(extra="allow")

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, gt=0)
    stop_token_ids: list[int] | None = None


class RunRequest(BaseModel):
    """Body of ``POST /run``: the row's fields at top level plus these."""

    model_config = ConfigDict(extra="allow")

    instance_id: str = Field(min_length=1)
    responses_create_params: ResponsesCreateParams = Field(default_factory=ResponsesCreateParams)
    subset: str = "gym"
    split: str = "train"
    sglang_url: str | None = None
    sampling_params: WireSamplingParams | None = None
    return_token_ids: bool = False

    def row(self) -> dict[str, Any]:
        """The task row inside the request: every field that is not about the run."""
        extra = dict(self.model_extra or {})
        return {
            "instance_id": self.instance_id,
            "subset": self.subset,
            "split": self.split,
            **extra,
        }


class PrefetchRequest(BaseModel):
    """Body of ``POST /prefetch``: what is needed next, the first one first."""

    model_config = ConfigDict(extra="forbid")

    images: tuple[str, ...] = ()
    instance_ids: tuple[str, ...] = ()
    """Of tasks that the server was started with."""


class ReachRequest(BaseModel):
    """Body of ``POST /reach``: can the environment server reach this policy endpoint?"""

    model_config = ConfigDict(extra="forbid")

    url: str


class ReachResponse(BaseModel):
    """Answer of ``POST /reach``."""

    reachable: bool
    error: str | None = None


class RunResponse(BaseModel):
    """Answer of ``POST /run``."""

    reward: float
    instance_id: str
    responses_create_params: dict[str, Any]
    messages: list[dict[str, Any]]
    response: dict[str, Any]
    metadata: dict[str, Any]
    info: dict[str, Any]
    mask_sample: bool
    outcome: Outcome
    error: str | None
    patch: str | None
    submission: str | None
    timings: dict[str, float]
    episode: dict[str, Any]
    """The whole episode record, for clients that speak ours (:func:`episode_from_wire`)."""


# --- gateway sessions ---------------------------------------------------------


class SessionRequest(BaseModel):
    """Body of ``POST /sessions``: the budget, which overrides what the agent asks for.

    ``purpose`` (none: training) decides on options that spoil logprobs (``docs/gateway.md``).
    """

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, gt=0)
    max_total_tokens: int | None = Field(None, gt=0)
    seed: int | None = None
    purpose: Literal["training", "evaluation"] | None = None


class SessionResponse(BaseModel):
    """Answer of ``POST /sessions``."""

    session_id: str
    base_url: str  # ends in /v1


# --- records across the wire --------------------------------------------------

_EPISODE = TypeAdapter(EpisodeResult)
_TRACE = TypeAdapter(Trace)


def message_to_wire(message: Message) -> dict[str, Any]:
    """An OpenAI chat message."""
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def message_from_wire(wire: dict[str, Any]) -> Message:
    """Read an OpenAI chat message; text parts are joined, unknown keys ignored."""
    content = wire.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return Message(
        role=str(wire["role"]),
        content=str(content),
        tool_calls=tuple(
            ToolCall(
                id=str(call.get("id", "")),
                name=str(call["function"]["name"]),
                arguments=str(call["function"].get("arguments", "")),
            )
            for call in wire.get("tool_calls") or ()
        ),
        tool_call_id=wire.get("tool_call_id"),
    )


def episode_to_wire(episode: EpisodeResult) -> dict[str, Any]:
    """An episode as JSON values."""
    wire: dict[str, Any] = _EPISODE.dump_python(episode, mode="json")
    return wire


def episode_from_wire(wire: dict[str, Any]) -> EpisodeResult:
    """Read what :func:`episode_to_wire` wrote.

    Raises:
        pydantic.ValidationError: it is something else.
    """
    return _EPISODE.validate_python(wire)


def trace_to_wire(trace: Trace) -> dict[str, Any]:
    """A trace as JSON values."""
    wire: dict[str, Any] = _TRACE.dump_python(trace, mode="json")
    return wire


def trace_from_wire(wire: dict[str, Any]) -> Trace:
    """Read what :func:`trace_to_wire` wrote.

    Raises:
        pydantic.ValidationError: it is something else.
    """
    return _TRACE.validate_python(wire)


def eval_report(instance_id: str, verdict: Verdict) -> dict[str, Any]:
    """The report in the shape of the swebench harness, as Gym's clients read it."""

    def split(tests: TestSplit) -> dict[str, list[str]]:
        return {"success": list(tests.success), "failure": list(tests.failure)}

    return {
        "eval_report": {
            instance_id.lower(): {
                "resolved": verdict.resolved,
                "patch_successfully_applied": verdict.patch_applied,
                "tests_status": {
                    "FAIL_TO_PASS": split(verdict.fail_to_pass),
                    "PASS_TO_PASS": split(verdict.pass_to_pass),
                },
            }
        }
    }


def timings_to_wire(timings: Timings) -> dict[str, float]:
    """Seconds by stage; stages that were not reached are left out."""
    return {k: v for k, v in dataclasses.asdict(timings).items() if v is not None}
