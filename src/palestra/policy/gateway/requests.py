"""The chat-completion body as OpenAI's clients send it, checked and turned into records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palestra.errors import PalestraError
from palestra.policy.gateway.asks import Ask, Attempt, Wishes
from palestra.policy.gateway.history import Conversation
from palestra.records import Message, ToolCall


class BadRequest(PalestraError):
    """A body that cannot be answered; ``field`` says where, ``status`` how HTTP calls it."""

    def __init__(self, message: str, *, field: str, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field
        self.status = status


class SamplingFields(BaseModel):
    """What every endpoint understands of how to sample."""

    model_config = ConfigDict(extra="allow")

    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: dict[int, float] | None = None
    seed: int | None = None

    def wishes(self, max_new_tokens: int | None) -> Wishes:
        """How the client wants to be sampled, without what changes nothing."""
        return Wishes(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k in (-1, 0) else self.top_k,
            min_p=self.min_p or None,
            frequency_penalty=self.frequency_penalty or None,
            presence_penalty=self.presence_penalty or None,
            repetition_penalty=None if self.repetition_penalty == 1 else self.repetition_penalty,
            logit_bias=tuple(sorted((self.logit_bias or {}).items())),
            max_new_tokens=max_new_tokens,
            seed=self.seed,
        )


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """The function of a tool call; ``arguments`` is JSON text."""

    name: str = Field(min_length=1)
    arguments: str = "{}"


class CalledTool(BaseModel):
    """A tool call in an assistant message."""

    id: str = ""
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message; fields that other clients add (``refusal``, ``audio``, …) are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def thought(self) -> str | None:
        """The thinking that came with an assistant's message, under either of its names."""
        return self.reasoning_content or self.reasoning if self.role == "assistant" else None

    def record(self) -> Message:
        """The message as a record; ``developer`` is OpenAI's newer word for ``system``."""
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=content,
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
        )


class OfferedFunction(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)


class OfferedTool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: OfferedFunction


class StreamOptions(BaseModel):
    """What else a stream shall hold."""

    include_usage: bool = False


class ChatRequest(SamplingFields):
    """Body of ``POST /v1/chat/completions``; fields that change nothing here are ignored."""

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[OfferedTool] | None = None
    tool_choice: Any = None
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    return_token_ids: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def ask(self, attempt: Attempt) -> Ask:
        """The request in the gateway's own shape."""
        offered = () if self.tool_choice == "none" else self.tools or ()
        thoughts = tuple(message.thought for message in self.messages)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Ask(
            conversation=Conversation(
                messages=tuple(message.record() for message in self.messages),
                tools=tuple(tool.model_dump(exclude_unset=True) for tool in offered),
                thoughts=thoughts if any(thoughts) else (),
            ),
            wishes=self.wishes(self.max_completion_tokens or self.max_tokens),
            stop_strings=tuple(stop for stop in stops if stop),
            attempt=attempt,
        )


_ONLY_AS: dict[str, tuple[Any, ...]] = {
    # Options that would change the answer, and the values under which they do not.
    "n": (None, 1),
    "tool_choice": (None, "auto", "none"),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
}


def read_chat_request(body: bytes) -> ChatRequest:
    """Parse and check a body.

    Raises:
        BadRequest: 422 for a malformed field, 400 for an option that is not supported.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise malformed(error) from None
    refuse_others({**(request.model_extra or {}), "tool_choice": request.tool_choice}, _ONLY_AS)
    return request


def refuse_others(given: dict[str, Any], only_as: dict[str, tuple[Any, ...]]) -> None:
    """Refuse options with values that would change the answer, and are not supported.

    Raises:
        BadRequest: 400, naming the field.
    """
    for field, values in only_as.items():
        if given.get(field) not in values:
            raise BadRequest(
                f"{field}={given[field]!r} is not supported, only "
                + " or ".join(repr(value) for value in values if value is not None),
                field=field,
                status=400,
            )


def malformed(error: ValidationError) -> BadRequest:
    """The first wrong field of a body, by its path."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    return BadRequest(f"{field}: {first['msg']}", field=field, status=422)
