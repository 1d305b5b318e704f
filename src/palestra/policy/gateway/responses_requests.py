"""The body of the Responses API, checked and turned into the messages that it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from palestra.policy.gateway.asks import Ask, Attempt
from palestra.policy.gateway.history import Conversation
from palestra.policy.gateway.requests import SamplingFields, malformed, refuse_others
from palestra.policy.gateway.said import Line
from palestra.records import Message, ToolCall


class ContentPart(BaseModel):
    """A part of a message, of a tool's output or of thinking; only text is understood."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str


Content = str | list[ContentPart]


class MessageItem(BaseModel):
    """A message; ``type`` may be left out."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class CallItem(BaseModel):
    """A function call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    arguments: str = "{}"


class OutputItem(BaseModel):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(BaseModel):
    """The thinking before an assistant's message."""

    type: Literal["reasoning"]
    content: list[ContentPart] | None = None


def _type(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return str(kind)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_type),
]


class FlatTool(BaseModel):
    """A function on offer; unlike in chat completions, its fields stand beside ``type``."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    name: str = Field(min_length=1)

    def nested(self) -> dict[str, Any]:
        """The tool as chat completions spell it, so that both are the same history."""
        function = self.model_dump(exclude_unset=True, exclude={"type"})
        return {"type": "function", "function": function}


class ResponsesRequest(SamplingFields):
    """Body of ``POST /v1/responses``; fields that change nothing here are ignored."""

    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Any = None
    max_output_tokens: int | None = Field(None, gt=0)
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    return_token_ids: bool = False

    def lines(self) -> list[Line]:
        """The messages of the input, each with its thinking."""
        if isinstance(self.input, str):
            return [(Message(role="user", content=self.input), None)]
        reader = _Reader()
        for item in self.input:
            reader.read(item)
        return reader.end()

    def ask(self, lines: Sequence[Line], attempt: Attempt) -> Ask:
        """The request in the gateway's own shape; ``lines`` are the whole conversation."""
        if self.instructions is not None:
            lines = [(Message(role="system", content=self.instructions), None), *lines]
        offered = () if self.tool_choice == "none" else self.tools or ()
        thoughts = tuple(thought for _, thought in lines)
        return Ask(
            conversation=Conversation(
                messages=tuple(message for message, _ in lines),
                tools=tuple(tool.nested() for tool in offered),
                thoughts=thoughts if any(thoughts) else (),
            ),
            wishes=self.wishes(self.max_output_tokens),
            attempt=attempt,
        )


class _Reader:
    """Puts items together to messages: what one answer held comes back as several items."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._content: str | None = None
        self._calls: list[ToolCall] = []
        self._thought: str | None = None

    def read(self, item: MessageItem | CallItem | OutputItem | ReasoningItem) -> None:
        match item:
            case ReasoningItem():
                self._close()
                self._thought = _text(item.content or []) or None
            case CallItem():
                call = ToolCall(id=item.call_id, name=item.name, arguments=item.arguments)
                self._calls.append(call)
            case OutputItem():
                self._close()
                content = _text(item.output)
                message = Message(role="tool", content=content, tool_call_id=item.call_id)
                self._lines.append((message, None))
            case MessageItem(role="assistant"):
                if self._content is not None or self._calls:
                    self._close()
                self._content = _text(item.content)
            case MessageItem():
                self._close()
                role = "system" if item.role == "developer" else item.role
                self._lines.append((Message(role=role, content=_text(item.content)), None))

    def end(self) -> list[Line]:
        self._close()
        return self._lines

    def _close(self) -> None:
        """End the assistant's message that is being put together, if there is one."""
        if self._content is not None or self._calls:
            message = Message(
                role="assistant", content=self._content or "", tool_calls=tuple(self._calls)
            )
            self._lines.append((message, self._thought))
        self._content, self._calls, self._thought = None, [], None


_ONLY_AS: dict[str, tuple[Any, ...]] = {
    "tool_choice": (None, "auto", "none"),
    "top_logprobs": (None, 0),
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
    "text": (None, {}, {"format": {"type": "text"}}),
}


def read_responses_request(body: bytes) -> ResponsesRequest:
    """Parse and check a body.

    Raises:
        BadRequest: 422 for a malformed field, 400 for an option that is not supported.
    """
    try:
        request = ResponsesRequest.model_validate_json(body)
    except ValidationError as error:
        raise malformed(error) from None
    refuse_others({**(request.model_extra or {}), "tool_choice": request.tool_choice}, _ONLY_AS)
    return request


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
