"""The parts of a tokenizer and of a renderer that the gateway uses.

Both are the renderers package's structural types, narrowed to what is called
here, so that a strict type checker sees them (that package ships no types).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """A Hugging Face tokenizer, or anything shaped like one."""

    name_or_path: str
    unk_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any:
        """Encode with more than ids, for example character offsets."""
        ...

    def encode(self, text: str, **options: Any) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, token_ids: Any, **options: Any) -> str:
        """Ids to text."""
        ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token by its name."""
        ...


class RenderedTokens(Protocol):
    """What rendering gives: ids, and per id where it came from."""

    token_ids: list[int]
    message_indices: list[int]
    sampled_mask: list[bool]
    is_content: list[bool]


class ParsedToolCall(Protocol):
    """One attempt at a tool call; ``status`` is ``ok`` or says what is wrong with it."""

    raw: str
    name: str | None
    arguments: dict[str, Any] | str | None
    status: str


class ParsedResponse(Protocol):
    """What the model said, taken apart."""

    content: str
    reasoning_content: str | None
    tool_calls: Sequence[ParsedToolCall]


class Renderer(Protocol):
    """Owns message ↔ id conversion for one family of models."""

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> RenderedTokens:
        """Render OpenAI chat messages from the start."""
        ...

    def render_ids(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Render to ids only."""
        ...

    def parse_response(
        self,
        token_ids: list[int],
        *,
        tools: list[dict[str, Any]] | None = None,
        prompt_ids: list[int] | None = None,
    ) -> ParsedResponse:
        """Sampled ids to content and tool calls."""
        ...

    def get_stop_token_ids(self) -> list[int]:
        """Ids that end a turn."""
        ...

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
    ) -> RenderedTokens | None:
        """Append the next turn's context to ids that were sampled, or ``None``."""
        ...
