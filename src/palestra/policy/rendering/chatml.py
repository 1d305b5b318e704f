r"""ChatML for Qwen2.5-style models and our own tiny ones.

A message is exactly ``<|im_start|>role\ncontent<|im_end|>\n``. No system prompt
is added unless the configuration names one, and the ids that the model sampled
are never rendered anew: :meth:`ChatMLRenderer.bridge_to_next_turn` appends to
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar, Literal

from renderers.base import (
    ParsedResponse,
    ParsedToolCall,
    RenderedTokens,
    ToolCallParseStatus,
    extract_message_tool_names,
)
from renderers.configs import BaseRendererConfig

from palestra.errors import ConfigError
from palestra.policy.rendering.hermes import describe_tools, read_calls, write_calls
from palestra.policy.rendering.plain_text import PlainTextTokenizer
from palestra.policy.rendering.protocol import Tokenizer
from palestra.policy.rendering.thinking import split_thought, write_thought

IMPORT_PATH = "palestra.policy.rendering.chatml.ChatMLRenderer"
"""How the renderers package finds this renderer (``CustomRendererConfig.import_path``)."""

_KEPT = 256  # texts whose ids are remembered


class ChatMLConfig(BaseRendererConfig):  # type: ignore[misc]  # the package ships no types
    """Configuration of the ChatML renderer."""

    name: Literal["palestra-chatml"] = "palestra-chatml"
    default_system: str | None = None
    """System prompt of conversations that bring none; ``None``: none."""

    _template_fields: ClassVar[frozenset[str]] = frozenset({"default_system"})


class ChatMLRenderer:
    """Renders messages as ChatML, tool calls in the Hermes format.

    Args:
        tokenizer: has ``<|im_start|>`` and ``<|im_end|>`` as special tokens.
        config: the defaults when ``None``.

    Raises:
        ConfigError: the tokenizer lacks a control token, or text could forge one.
    """

    config_class: ClassVar[type[ChatMLConfig]] = ChatMLConfig
    is_prefix_stable = True

    def __init__(self, tokenizer: Tokenizer, config: ChatMLConfig | None = None) -> None:
        self.config = config or ChatMLConfig()
        self._tokenizer = PlainTextTokenizer.over(tokenizer)
        self._im_start = self._control_id("<|im_start|>")
        self._im_end = self._control_id("<|im_end|>")
        self._stop_ids = [self._im_end, *self._other_ends()]
        self._tokenizer.require_plain([self._im_start, *self._stop_ids])
        self._newline = self._encode("\n")
        self._opening = [self._im_start, *self._encode("assistant\n")]
        # Rollouts of a group begin with the same prompts.
        self._parts = lru_cache(_KEPT)(self._encode_wrapped)

    def get_stop_token_ids(self) -> list[int]:
        """``<|im_end|>``, and ``<|endoftext|>`` where the tokenizer has it."""
        return list(self._stop_ids)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> RenderedTokens:
        """Render a conversation from its start.

        Raises:
            ValueError: there is no message, or one has an unknown role.
        """
        if not messages:
            raise ValueError("there are no messages to render")
        out = _Stream()
        rest = list(enumerate(messages))
        system = self.config.default_system
        index = -1
        if messages[0]["role"] == "system":
            index, first = rest.pop(0)
            system = _text(first)
        if system is not None or tools:
            offer = describe_tools(tools) if tools else ""
            between = "\n\n" if system and offer else ""
            self._add_block(out, index, "system\n", system or "", between + offer)
        self._add_messages(out, rest)
        if add_generation_prompt:
            out.add(self._opening, -1)
        return out.rendered(messages)

    def render_ids(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Render to ids only."""
        rendered = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        ids: list[int] = rendered.token_ids
        return ids

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
    ) -> RenderedTokens | None:
        """Append ``new_messages`` and an opened assistant turn to ids that stay as they are.

        A completion that was cut by its length gets the missing close as
        context. ``None`` when there is nothing to append to or to append.
        Assistant messages among the new ones are rendered as context: a caller
        that keeps what was sampled passes them only where an agent wrote or
        rewrote them itself.
        """
        if not previous_prompt_ids or not new_messages:
            return None
        out = _Stream()
        out.add([*previous_prompt_ids, *previous_completion_ids], -1)
        if not previous_completion_ids or previous_completion_ids[-1] != self._im_end:
            out.add([self._im_end], -1)
        out.add(self._newline, -1)
        self._add_messages(out, list(enumerate(new_messages)))
        out.add(self._opening, -1)
        return out.rendered(new_messages)

    def parse_response(
        self,
        token_ids: list[int],
        *,
        tools: list[dict[str, Any]] | None = None,
        prompt_ids: list[int] | None = None,
    ) -> ParsedResponse:
        """Decode a completion: thinking apart, malformed tool calls in the content."""
        ends = bool(token_ids) and token_ids[-1] in self._stop_ids
        text = self._tokenizer.decode(
            token_ids[:-1] if ends else token_ids,
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        thought, text = split_thought(text)
        content, attempts = read_calls(text)
        calls = [
            ParsedToolCall(
                raw=attempt.raw,
                name=attempt.name,
                arguments=attempt.arguments,
                status=ToolCallParseStatus(attempt.problem or "ok"),
            )
            for attempt in attempts
        ]
        return ParsedResponse(content=content, reasoning_content=thought, tool_calls=calls)

    def _add_messages(self, out: _Stream, messages: list[tuple[int, dict[str, Any]]]) -> None:
        # Neighbouring tool results share one user turn, as in Qwen's template.
        for role, group in groupby(messages, key=lambda pair: str(pair[1]["role"])):
            if role == "tool":
                self._add_tool_results(out, list(group))
                continue
            for index, message in group:
                if role == "assistant":
                    self._add_assistant(out, index, message)
                elif role in ("system", "user"):
                    self._add_block(out, index, role + "\n", _text(message), "")
                else:
                    raise ValueError(f"ChatML knows no role {role!r}")

    def _add_block(self, out: _Stream, index: int, before: str, body: str, after: str) -> None:
        out.add([self._im_start], index)
        self._add_wrapped(out, index, before, body, after)
        out.add([self._im_end], index)
        out.add(self._newline, index)

    def _add_assistant(self, out: _Stream, index: int, message: dict[str, Any]) -> None:
        # The role and what follows are encoded apart: sampling starts between them.
        out.add(self._opening, index)
        content, calls = _text(message), message.get("tool_calls") or []
        between = "\n" if content and calls else ""
        thought = write_thought(message.get("reasoning_content"))
        body = thought + content + between + write_calls(calls)
        out.add([*self._encode(body), self._im_end], index, sampled=True, content=True)
        out.add(self._newline, index)

    def _add_tool_results(self, out: _Stream, group: list[tuple[int, dict[str, Any]]]) -> None:
        out.add([self._im_start], group[0][0])
        before = "user\n<tool_response>\n"
        for index, message in group:
            self._add_wrapped(out, index, before, _text(message), "\n</tool_response>")
            before = "\n<tool_response>\n"
        out.add([self._im_end], group[-1][0])
        out.add(self._newline, group[-1][0])

    def _add_wrapped(self, out: _Stream, index: int, before: str, body: str, after: str) -> None:
        for content, ids in self._parts(before, body, after):
            out.add(ids, index, content=content)

    def _encode_wrapped(
        self, before: str, body: str, after: str
    ) -> tuple[tuple[bool, list[int]], ...]:
        """Ids, run by run, each with whether it is of ``body``."""
        # One pass over the whole text keeps the merges of the chat template.
        encoded = self._tokenizer(
            before + body + after, add_special_tokens=False, return_offsets_mapping=True
        )
        start, end = len(before), len(before) + len(body)
        inside = [start <= first < end for first, _ in encoded["offset_mapping"]]
        return tuple(_runs(encoded["input_ids"], inside))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    def _control_id(self, token: str) -> int:
        control_id = self._tokenizer.convert_tokens_to_ids(token)
        if not isinstance(control_id, int) or control_id == self._tokenizer.unk_token_id:
            raise ConfigError(
                f"the tokenizer {self._tokenizer.name_or_path!r} has no token {token}",
                hint="name the model's own renderer in model.renderer",
            )
        return control_id

    def _other_ends(self) -> list[int]:
        candidates = [
            self._tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            self._tokenizer.eos_token_id,
        ]
        known = [i for i in candidates if isinstance(i, int) and i != self._tokenizer.unk_token_id]
        return [i for i in dict.fromkeys(known) if i != self._im_end]


class _Stream:
    """Collects ids and, per id, whose they are."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._indices: list[int] = []
        self._sampled: list[bool] = []
        self._content: list[bool] = []

    def add(
        self, ids: Sequence[int], index: int, *, sampled: bool = False, content: bool = False
    ) -> None:
        n = len(ids)
        self._ids += ids
        self._indices += [index] * n
        self._sampled += [sampled] * n
        self._content += [content] * n

    def rendered(self, messages: list[dict[str, Any]]) -> RenderedTokens:
        return RenderedTokens(
            token_ids=self._ids,
            message_indices=self._indices,
            sampled_mask=self._sampled,
            is_content=self._content,
            message_roles=[str(message["role"]) for message in messages],
            message_tool_names=extract_message_tool_names(messages),
        )


def _runs(ids: Sequence[int], flags: Sequence[bool]) -> Iterator[tuple[bool, list[int]]]:
    for flag, pairs in groupby(zip(flags, ids, strict=True), key=lambda pair: pair[0]):
        yield flag, [i for _, i in pairs]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
