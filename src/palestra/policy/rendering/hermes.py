"""Tool calls in the Hermes format that Qwen2.5 and Qwen3 speak: JSON between tags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HEADER = (
    "# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    "<tools>"
)
_FOOTER = (
    "\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n"
    "<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAttempt:
    """One ``<tool_call>`` block; ``problem`` is ``None`` when it is well-formed."""

    raw: str
    name: str | None = None
    arguments: dict[str, Any] | None = None
    problem: str | None = None  # a value of renderers' ToolCallParseStatus


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """The block of the system message that offers ``tools``."""
    lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _HEADER + lines + _FOOTER


def write_calls(tool_calls: Sequence[Mapping[str, Any]]) -> str:
    """An assistant's tool calls (OpenAI's shape) as text."""
    blocks = []
    for call in tool_calls:
        function = call.get("function") or call
        arguments = function.get("arguments", {})
        text = arguments
        if not isinstance(text, str):
            text = json.dumps(arguments, ensure_ascii=False)
        name = json.dumps(function["name"], ensure_ascii=False)
        blocks.append(f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>')
    return "\n".join(blocks)


def read_calls(text: str) -> tuple[str, tuple[CallAttempt, ...]]:
    """Split a reply into its text and its tool calls; malformed calls stay in the text."""
    attempts: list[CallAttempt] = []
    kept: list[str] = []
    position = 0
    for block in _BLOCK.finditer(text):
        attempt = _read(block.group(0), block.group(1), closed=bool(block.group(2)))
        attempts.append(attempt)
        if attempt.problem is None:
            kept.append(text[position : block.start()])
            position = block.end()
    if position == 0:
        return text, tuple(attempts)
    kept.append(text[position:])
    return "".join(kept).strip("\n"), tuple(attempts)


def _read(raw: str, body: str, *, closed: bool) -> CallAttempt:
    if not closed:
        return CallAttempt(raw=raw, problem="unclosed_block")
    try:
        call = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return CallAttempt(raw=raw, problem="invalid_json")
    if not isinstance(call, dict):
        return CallAttempt(raw=raw, problem="malformed_structure")
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or not name:
        return CallAttempt(raw=raw, problem="missing_name")
    if not isinstance(arguments, dict):
        return CallAttempt(raw=raw, name=name, problem="malformed_structure")
    return CallAttempt(raw=raw, name=name, arguments=arguments)
