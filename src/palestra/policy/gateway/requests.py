"""The chat-completion body as OpenAI's clients send it, checked and turned into records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palestra.errors import PalestraError
from palestra.policy.gateway.history import Conversation
from palestra.records import Message
from palestra.wire import message_from_wire


class BadRequest(PalestraError):
    """A body that cannot be answered; ``field`` says where, ``status`` how HTTP calls it."""

    def __init__(self, message: str, *, field: str, status: int) -> None:
        super().__init__(message)
        self.field = field
        self.status = status


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

    def record(self) -> Message:
        """The message as a record; ``developer`` is OpenAI's newer word for ``system``."""
        message = self.model_dump()
        if self.role == "developer":
            message["role"] = "system"
        return message_from_wire(message)


class OfferedFunction(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)


class OfferedTool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: OfferedFunction


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``; fields that change nothing here are ignored."""

    model_config = ConfigDict(extra="allow")

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[OfferedTool] | None = None
    tool_choice: Any = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    return_token_ids: bool = False

    def conversation(self) -> Conversation:
        """The messages and the tools on offer."""
        offered = () if self.tool_choice == "none" else self.tools or ()
        return Conversation(
            messages=tuple(message.record() for message in self.messages),
            tools=tuple(tool.model_dump(exclude_unset=True) for tool in offered),
        )

    @property
    def max_new_tokens(self) -> int | None:
        """What the client allows one answer to have."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)


_ONLY_AS: dict[str, tuple[Any, ...]] = {
    # Options that would change the answer, and the values under which they do not.
    "stream": (None, False),
    "n": (None, 1),
    "tool_choice": (None, "auto", "none"),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
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
    given = {**(request.model_extra or {}), "tool_choice": request.tool_choice}
    for field, values in _ONLY_AS.items():
        if given.get(field) not in values:
            raise BadRequest(
                f"{field}={given[field]!r} is not supported, only "
                + " or ".join(repr(value) for value in values if value is not None),
                field=field,
                status=400,
            )
    return request


def malformed(error: ValidationError) -> BadRequest:
    """The first wrong field of a body, by its path."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    return BadRequest(f"{field}: {first['msg']}", field=field, status=422)
