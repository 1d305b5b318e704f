"""The turns of one session as a tree, and where an incoming history continues it.

The rules, in this order:

1. The longest known history that the incoming one starts with decides the
   parent. A known history is everything a turn was asked plus what it
   answered. The new messages are *bridged* onto the parent's exact ids: what
   the model sampled is never tokenised again.
2. Where nothing is known, or the renderer cannot bridge, the whole
   conversation is rendered as a new root. That is what happens when an agent
   rewrites its history from the start.
3. A request that repeats an earlier one is a new sample of the same prompt: it
   becomes a sibling. An answer is never handed out twice, because an agent
   that asks again may want another answer; a client that gave up closes its
   connection, which cancels the turn before it is recorded. When two siblings
   answered with the same text, the later one is continued.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from palestra.policy.gateway.history import Conversation, empty_history, longer_history
from palestra.policy.rendering.protocol import Renderer
from palestra.records import Generation, Message, Turn
from palestra.wire import message_to_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a request belongs in the tree, and the prompt that follows from it."""

    parent: int | None
    prompt_ids: tuple[int, ...]
    num_inherited: int  # ids of the prompt that the parent's path already holds
    history: bytes  # digest of the whole request

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The ids that this turn adds before it samples."""
        return self.prompt_ids[self.num_inherited :]

    @property
    def num_context(self) -> int:
        """How many ids this turn adds before it samples."""
        return len(self.prompt_ids) - self.num_inherited


class TurnTree:
    """Grows by one turn per answered request."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._turns: list[Turn] = []
        self._by_history: dict[bytes, int] = {}
        self._num_ids = 0

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, parents first."""
        return tuple(self._turns)

    @property
    def num_ids(self) -> int:
        """Ids that the tree holds: every context and every sample, once."""
        return self._num_ids

    def place(self, conversation: Conversation) -> Placement:
        """Find the parent of a request and its prompt, without changing the tree.

        Raises:
            ValueError: the renderer cannot render the conversation.
        """
        history = empty_history(conversation.tools)
        parent, num_known = None, 0
        for number, message in enumerate(conversation.messages, start=1):
            history = longer_history(history, message)
            turn = self._by_history.get(history)
            if turn is not None and number < len(conversation.messages):
                parent, num_known = turn, number
        if parent is not None:
            bridged = self._bridge(parent, conversation, num_known)
            if bridged is not None:
                ids, num_inherited = bridged
                return Placement(
                    parent=parent, prompt_ids=ids, num_inherited=num_inherited, history=history
                )
        ids = tuple(
            self._renderer.render_ids(
                _to_wire(conversation.messages),
                tools=_tools(conversation),
                add_generation_prompt=True,
            )
        )
        return Placement(parent=None, prompt_ids=ids, num_inherited=0, history=history)

    def append(
        self,
        placement: Placement,
        generation: Generation,
        *,
        answer: Message,
        temperature: float,
        duration_s: float,
    ) -> Turn:
        """Record what was sampled at ``placement`` and the message that it was sent as."""
        turn = Turn(
            index=len(self._turns),
            parent=placement.parent,
            context_ids=placement.context_ids,
            segments=generation.segments,
            finish_reason=generation.finish_reason,
            temperature=temperature,
            duration_s=duration_s,
        )
        self._turns.append(turn)
        self._by_history[longer_history(placement.history, answer)] = turn.index
        self._num_ids += len(turn.context_ids) + len(turn.sampled_ids)
        return turn

    def _bridge(
        self, parent: int, conversation: Conversation, num_known: int
    ) -> tuple[tuple[int, ...], int] | None:
        prompt, completion = self._path(parent)
        bridged = self._renderer.bridge_to_next_turn(
            prompt,
            completion,
            _to_wire(conversation.messages[num_known:]),
            tools=_tools(conversation),
        )
        if bridged is None:
            return None
        before = prompt + completion
        # Some renderers trim what was sampled after the close; then it is no bridge.
        if bridged.token_ids[: len(before)] != before:
            return None
        return tuple(bridged.token_ids), len(before)

    def _path(self, index: int) -> tuple[list[int], list[int]]:
        """The prompt of a turn and what it sampled."""
        chain = [self._turns[index]]
        while (parent := chain[-1].parent) is not None:
            chain.append(self._turns[parent])
        prompt: list[int] = []
        for turn in reversed(chain[1:]):
            prompt += turn.context_ids
            for segment in turn.segments:
                prompt += segment.ids
        prompt += chain[0].context_ids
        return prompt, list(chain[0].sampled_ids)


def _to_wire(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [message_to_wire(message) for message in messages]


def _tools(conversation: Conversation) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in conversation.tools] or None
