"""Conversations as the agent sends them, and digests that tell whether two are the same.

Two messages count as equal when a model could not tell them apart as history:
ids of tool calls, the spelling of their JSON, and blanks around an assistant's
text (agents strip it) make no difference. Thinking is compared apart from the
rest, since agents may leave it out of what they send back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palestra.records import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a completion is asked to continue; ``tools`` are JSON schemas as they came.

    ``thoughts`` holds, per message, the thinking that came with it, ``None`` where
    none came; it may be empty when no message has any.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    thoughts: tuple[str | None, ...] = ()

    def thought(self, index: int) -> str | None:
        """The thinking that came with a message."""
        return self.thoughts[index] if self.thoughts else None


def empty_history(tools: Sequence[Mapping[str, Any]]) -> bytes:
    """The digest of a conversation that has tools on offer and no message yet."""
    return _digest(b"", [json.dumps(tool, sort_keys=True) for tool in tools])


def longer_history(history: bytes, message: Message) -> bytes:
    """The digest of ``history`` with one more message."""
    content = message.content.strip() if message.role == "assistant" else message.content
    calls = [part for c in message.tool_calls for part in (c.name, _canonical(c.arguments))]
    return _digest(history, [message.role, content, *calls])


def thought_digest(thought: str | None) -> bytes:
    """A digest of thinking; blanks around it, and none at all, make no difference."""
    return _digest(b"thought", [(thought or "").strip()])


def _digest(before: bytes, parts: Sequence[str]) -> bytes:
    hasher = hashlib.blake2b(before, digest_size=16)
    for part in parts:
        # Lengths first, so that no two lists of parts run into the same bytes.
        encoded = part.encode("utf-8", "surrogatepass")
        hasher.update(b"%d:" % len(encoded))
        hasher.update(encoded)
    return hasher.digest()


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
