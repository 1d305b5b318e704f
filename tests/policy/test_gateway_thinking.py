"""Models that think: what was sampled stays, whatever the agent does with the thinking."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_parts import control, encode, tokenizer

from palestra.policy.gateway.history import Conversation
from palestra.policy.gateway.tree import TurnTree
from palestra.policy.rendering import ChatMLRenderer, load_renderer
from palestra.policy.rendering.protocol import Renderer
from palestra.policy.rendering.thinking import split_thought
from palestra.records import FinishReason, Generation, Message, Segment

END = "<|im_end|>"
QWEN = tokenizer(with_tool_tokens=True)


@pytest.fixture(params=["chatml", "qwen3"])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    return load_renderer(request.param, QWEN)


def talk(*messages: tuple[str, str] | tuple[str, str, str | None]) -> Conversation:
    return Conversation(
        messages=tuple(Message(role=m[0], content=m[1]) for m in messages),
        thoughts=tuple(m[2] if len(m) > 2 else None for m in messages),
    )


def grow(tree: TurnTree, renderer: Renderer, asked: Conversation, thought: str, text: str) -> int:
    written = f"<think>\n{thought}\n</think>\n\n{text}"
    ids = [*QWEN.encode(written, add_special_tokens=False), control(END)]
    parsed = renderer.parse_response(ids)
    assert (parsed.reasoning_content, parsed.content) == (thought, text)
    segment = Segment(ids=tuple(ids), logprobs=(-0.5,) * len(ids), policy_version=0)
    turn = tree.append(
        tree.place(asked),
        Generation(segments=(segment,), finish_reason=FinishReason.STOP),
        answer=Message(role="assistant", content=text),
        thought=thought,
        temperature=1.0,
        duration_s=0.0,
    )
    return turn.index


@pytest.mark.parametrize(
    ("first", "second", "parent"),
    [
        (None, None, 1),  # most agents: thinking is dropped
        ("t1", "t2", 1),  # all of it is sent back
        (" t1\n", "t2", 1),  # blanks around it make no difference
        (None, "t2", 1),  # what templates do: only the last is kept
        ("t1", None, 1),
        ("t1", "summary", 0),  # an edited thought is another history
        ("summary", "t2", None),
        ("summary", None, None),
    ],
)
def test_thinking_that_is_dropped_is_bridged_and_edited_thinking_branches(
    renderer: Renderer, first: str | None, second: str | None, parent: int | None
) -> None:
    tree = TurnTree(renderer)
    grow(tree, renderer, talk(("user", "u1")), "t1", "a1")
    asked = talk(("user", "u1"), ("assistant", "a1", first), ("user", "u2"))
    if parent is None:
        # Grown by an agent that drops thinking.
        asked = talk(("user", "u1"), ("assistant", "a1"), ("user", "u2"))
    grow(tree, renderer, asked, "t2", "a2")
    placement = tree.place(
        talk(
            ("user", "u1"),
            ("assistant", "a1", first),
            ("user", "u2"),
            ("assistant", "a2", second),
            ("user", "u3"),
        )
    )
    ours = isinstance(renderer, ChatMLRenderer)
    if second == "summary" and not ours:
        parent = None  # Qwen3's renderer bridges no assistant messages
    assert placement.parent == parent
    if parent is not None:
        prompt, sampled = tree.packed.path(parent)
        assert list(placement.prompt_ids[: placement.num_inherited]) == prompt + sampled
    elif ours:
        text = QWEN.decode(placement.prompt_ids)
        assert "summary" in text, "a new branch is what the agent sent"
    else:
        assert "t1" not in QWEN.decode(placement.prompt_ids), "Qwen3 drops what is past"


def test_of_two_answers_with_the_same_text_the_thinking_decides(renderer: Renderer) -> None:
    tree = TurnTree(renderer)
    for thought in ("t1", "t2"):
        grow(tree, renderer, talk(("user", "u1")), thought, "a")
    parents: dict[str | None, Any] = {
        thought: tree.place(
            talk(("user", "u1"), ("assistant", "a", thought), ("user", "u2"))
        ).parent
        for thought in ("t1", "t2", None, "t3")
    }
    assert parents == {"t1": 0, "t2": 1, None: 1, "t3": None}


@pytest.mark.parametrize(
    ("text", "thought", "content"),
    [
        ("hello", None, "hello"),
        ("a <think>b</think>", None, "a <think>b</think>"),
        ("<think>\nb\n</think>\n\nc", "b", "c"),
        ("<think>cut in the mid", "cut in the mid", ""),
        ("<think></think>c", "", "c"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_thinking_is_what_an_answer_begins_with(
    text: str, thought: str | None, content: str
) -> None:
    assert split_thought(text) == (thought, content)
    parsed = load_renderer("chatml", tokenizer()).parse_response(encode(text))
    assert (parsed.reasoning_content, parsed.content) == (thought, content)
