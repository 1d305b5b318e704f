"""What was said in a session, for clients that name an earlier response instead of sending it.

Each message is kept once, behind the history that it followed, so a conversation
of many responses stays linear in its length. Only the Responses API fills this.
"""

from __future__ import annotations

from dataclasses import dataclass

from palestra.policy.gateway.history import empty_history, longer_history
from palestra.records import Message

Line = tuple[Message, str | None]
"""A message and the thinking that came with it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    before: bytes
    line: Line


class Said:
    """Messages by the digest of the history that ends with them."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self._responses: dict[str, bytes] = {}

    def keep(self, response_id: str, lines: list[Line]) -> None:
        """Remember the conversation that ends with a response."""
        history = empty_history(())
        for line in lines:
            before, history = history, longer_history(history, line[0])
            # The newest wins: of two with the same text, it knows its own thinking.
            self._entries[history] = _Entry(before, line)
        self._responses[response_id] = history

    def recall(self, response_id: str) -> list[Line] | None:
        """The conversation up to a response; ``None`` when it is not known."""
        history = self._responses.get(response_id)
        lines: list[Line] = []
        while history is not None and (entry := self._entries.get(history)) is not None:
            lines.append(entry.line)
            history = entry.before
        return lines[::-1] or None
