"""The turns of one session as a tree, and where an incoming history continues it.

The rules, in this order:

1. The longest known history that the incoming one starts with decides the
   parent. A known history is everything a turn was asked plus what it
   answered. The new messages are *bridged* onto the parent's exact ids: what
   the model sampled is never tokenised again. Thinking may be missing from a
   history (most agents drop it); thinking that is sent back and is not what was
   sampled makes it another history.
2. Where nothing is known, or the renderer cannot bridge, the whole
   conversation is rendered as a new root. That is what happens when an agent
   rewrites its history from the start.
3. A request that repeats an earlier one, and does not say that it is a retry,
   is a new sample of the same prompt: it becomes a sibling, because an agent
   that asks again may want another answer. Of siblings, :meth:`Trace.paths`
   trains the ones that were gone on from, or else the last. When two siblings
   answered with the same text, the later one is continued.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from palestra.policy.gateway.history import (
    Conversation,
    empty_history,
    longer_history,
    thought_digest,
)
from palestra.policy.gateway.packed import PackedTurns
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
    num_messages: int

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The ids that this turn adds before it samples."""
        return self.prompt_ids[self.num_inherited :]

    @property
    def num_context(self) -> int:
        """How many ids this turn adds before it samples."""
        return len(self.prompt_ids) - self.num_inherited


@dataclass(frozen=True, slots=True)
class _Place:
    """What tells whether a history holds a turn: where its answer stands, and its thinking."""

    parent: int | None
    answer_at: int
    thought: bytes


class TurnTree:
    """Grows by one turn per answered request."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._packed: PackedTurns | None = PackedTurns()
        self._places: list[_Place] = []
        self._by_history: dict[bytes, tuple[int, ...]] = {}
        self._num_ids = 0

    @property
    def packed(self) -> PackedTurns:
        """The turns as they are kept."""
        if self._packed is None:
            raise RuntimeError("the turns of this session are on the disk")
        return self._packed

    @property
    def loaded(self) -> bool:
        """Whether the turns are in memory."""
        return self._packed is not None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, parents first."""
        return tuple(self.packed.turn(index) for index in range(len(self.packed)))

    @property
    def num_ids(self) -> int:
        """Ids that the tree holds: every context and every sample, once."""
        return self._num_ids

    def unload(self) -> None:
        """Let go of the turns; where a history continues them stays known."""
        self._packed = None

    def load(self, packed: PackedTurns) -> None:
        """Take back the turns that :meth:`unload` let go."""
        self._packed = packed

    def place(self, conversation: Conversation) -> Placement:
        """Find the parent of a request and its prompt, without changing the tree.

        Raises:
            ValueError: the renderer cannot render the conversation.
        """
        history = empty_history(conversation.tools)
        num_messages = len(conversation.messages)
        known: list[int] = []
        for number, message in enumerate(conversation.messages, start=1):
            history = longer_history(history, message)
            # A request that ends with an answer leaves nothing to say, so it is not continued.
            if number < num_messages:
                known += self._by_history.get(history, ())
        parent = next((turn for turn in reversed(known) if self._holds(turn, conversation)), None)
        bridged = None if parent is None else self._bridge(parent, conversation)
        if bridged is None:
            ids, num_inherited, parent = self._render(conversation), 0, None
        else:
            ids, num_inherited = bridged
        return Placement(
            parent=parent,
            prompt_ids=ids,
            num_inherited=num_inherited,
            history=history,
            num_messages=num_messages,
        )

    def append(
        self,
        placement: Placement,
        generation: Generation,
        *,
        answer: Message,
        temperature: float,
        duration_s: float,
        thought: str | None = None,
        began_s: float | None = None,
        distortions: tuple[str, ...] = (),
    ) -> Turn:
        """Record what was sampled at ``placement`` and the message that it was sent as."""
        turn = Turn(
            index=len(self.packed),
            parent=placement.parent,
            context_ids=placement.context_ids,
            segments=generation.segments,
            finish_reason=generation.finish_reason,
            temperature=temperature,
            duration_s=duration_s,
            began_s=began_s,
            cached_tokens=generation.cached_tokens,
            distortions=distortions,
        )
        self.packed.append(turn)
        self._places.append(
            _Place(placement.parent, placement.num_messages, thought_digest(thought))
        )
        history = longer_history(placement.history, answer)
        self._by_history[history] = (*self._by_history.get(history, ()), turn.index)
        self._num_ids += len(turn.context_ids) + len(turn.sampled_ids)
        return turn

    def _holds(self, index: int, conversation: Conversation) -> bool:
        """Whether no thinking of the conversation differs from what was sampled."""
        if not any(conversation.thoughts):
            return True
        at: int | None = index
        while at is not None:
            place = self._places[at]
            thought = conversation.thought(place.answer_at)
            if thought and thought_digest(thought) != place.thought:
                return False
            at = place.parent
        return True

    def _bridge(
        self, parent: int, conversation: Conversation
    ) -> tuple[tuple[int, ...], int] | None:
        prompt, completion = self.packed.path(parent)
        bridged = self._renderer.bridge_to_next_turn(
            prompt,
            completion,
            _to_wire(conversation, self._places[parent].answer_at + 1),
            tools=_tools(conversation),
        )
        if bridged is None:
            return None
        before = prompt + completion
        # Some renderers trim what was sampled after the close; then it is no bridge.
        if bridged.token_ids[: len(before)] != before:
            return None
        return tuple(bridged.token_ids), len(before)

    def _render(self, conversation: Conversation) -> tuple[int, ...]:
        return tuple(
            self._renderer.render_ids(
                _to_wire(conversation, 0), tools=_tools(conversation), add_generation_prompt=True
            )
        )


def _to_wire(conversation: Conversation, first: int) -> list[dict[str, Any]]:
    messages = []
    for index in range(first, len(conversation.messages)):
        message = message_to_wire(conversation.messages[index])
        if thought := conversation.thought(index):
            message["reasoning_content"] = thought
        messages.append(message)
    return messages


def _tools(conversation: Conversation) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in conversation.tools] or None
