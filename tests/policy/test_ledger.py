from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from gateway_parts import control, decode, encode, tokenizer

from palestra.policy.gateway.history import Conversation, empty_history, longer_history
from palestra.policy.gateway.ledger import Ledger, LedgerFull, SessionLimits, UnknownSession
from palestra.policy.gateway.tree import TurnTree
from palestra.policy.rendering import ChatMLRenderer
from palestra.records import FinishReason, Generation, Message, Segment, ToolCall, Trace, Turn

END = "<|im_end|>"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sys(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def said(text: str, *calls: ToolCall) -> Message:
    return Message(role="assistant", content=text, tool_calls=calls)


def talk(*messages: Message, tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    return Conversation(messages=messages, tools=tools)


def generation(ids: list[int], reason: FinishReason = FinishReason.STOP) -> Generation:
    segment = Segment(ids=tuple(ids), logprobs=tuple(-0.5 for _ in ids), policy_version=1)
    return Generation(segments=(segment,), finish_reason=reason)


def grow(
    tree: TurnTree, conversation: Conversation, text: str, ids: list[int] | None = None
) -> int:
    """Answer ``conversation`` with ``text`` and record it; the turn's index."""
    if ids is None:
        ids = [*encode(text), control(END)]
    turn = tree.append(
        tree.place(conversation),
        generation(ids),
        answer=said(text),
        temperature=1.0,
        duration_s=0.1,
    )
    return turn.index


@pytest.fixture
def tree() -> TurnTree:
    return TurnTree(ChatMLRenderer(tokenizer()))


def test_the_next_turn_is_bridged_onto_the_sampled_ids(tree: TurnTree) -> None:
    odd = [*encode("a"), *encode("b"), control(END)]
    grow(tree, talk(user("u1")), "ab", odd)
    placement = tree.place(talk(user("u1"), said("ab"), user("u2")))
    first = tree.turns[0]
    before = (*first.context_ids, *odd)
    assert placement.parent == 0
    assert placement.prompt_ids[: len(before)] == before
    assert placement.prompt_ids == (*before, *placement.context_ids)
    assert decode(placement.context_ids) == (
        "\n<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_long_conversation_stays_one_path_of_linear_size(tree: TurnTree) -> None:
    messages: list[Message] = [sys("s")]
    prompts = []
    for number in range(20):
        messages.append(user(f"u{number}"))
        prompts.append(tree.place(talk(*messages)).prompt_ids)
        grow(tree, talk(*messages), f"a{number}")
        messages.append(said(f"a{number}"))
    trace = Trace(session_id="s", turns=tree.turns)
    assert [turn.parent for turn in tree.turns] == [None, *range(19)]
    assert [trace.prompt_ids(turn) for turn in tree.turns] == prompts
    (path,) = trace.paths()
    assert len(path.ids) == tree.num_ids
    assert decode([i for i, t in zip(path.ids, path.trainable, strict=True) if t]) == "".join(
        f"a{number}{END}" for number in range(20)
    )


@pytest.mark.parametrize(
    ("messages", "parent"),
    [
        # what the agent sends next, and the turn that it continues
        ([user("u1"), said("a1"), user("u2"), said("a2"), user("u3")], 1),
        ([user("u1"), said("a1"), user("other")], 0),  # dropped the second turn
        ([user("u1"), said("a1"), user("u2"), said("edited"), user("u3")], 0),
        ([user("u1"), said("edited"), user("u2"), said("a2"), user("u3")], None),
        ([user("summary of all"), user("u3")], None),
        ([sys("new"), user("u1"), said("a1"), user("u2")], None),
        ([user("u1"), said("a1")], None),  # nothing new to say: there is no turn to open
        ([user("u1"), user("u2")], None),  # the answer was removed
        ([user("u1"), said("  a1\n"), user("u2"), said("a2"), user("x")], 1),  # stripped
        ([user("u1 "), said("a1"), user("u2")], None),  # but only an assistant's text is
    ],
)
def test_the_longest_known_history_is_continued(
    tree: TurnTree, messages: list[Message], parent: int | None
) -> None:
    grow(tree, talk(user("u1")), "a1")
    grow(tree, talk(user("u1"), said("a1"), user("u2")), "a2")
    placement = tree.place(talk(*messages))
    assert placement.parent == parent
    expected = "".join(
        f"<|im_start|>{m.role}\n{m.content.strip() if m.role == 'assistant' else m.content}{END}\n"
        for m in messages
    )
    assert decode(placement.prompt_ids) == expected + "<|im_start|>assistant\n"


def test_other_tools_are_another_conversation(tree: TurnTree) -> None:
    tool = {"type": "function", "function": {"name": "bash"}}
    grow(tree, talk(user("u1")), "a1")
    assert tree.place(talk(user("u1"), said("a1"), user("u2"), tools=(tool,))).parent is None


def test_the_same_request_again_is_a_sibling(tree: TurnTree) -> None:
    grow(tree, talk(user("u1")), "a1")
    again = grow(tree, talk(user("u1")), "other")
    assert [turn.parent for turn in tree.turns] == [None, None]
    assert tree.turns[0].context_ids == tree.turns[again].context_ids
    assert tree.place(talk(user("u1"), said("a1"), user("u2"))).parent == 0
    assert tree.place(talk(user("u1"), said("other"), user("u2"))).parent == again


def test_of_siblings_with_the_same_text_the_later_is_continued(tree: TurnTree) -> None:
    grow(tree, talk(user("u1")), "ab", [*encode("ab"), control(END)])
    odd = [*encode("a"), *encode("b"), control(END)]
    later = grow(tree, talk(user("u1")), "ab", odd)
    placement = tree.place(talk(user("u1"), said("ab"), user("u2")))
    assert placement.parent == later
    assert list(tree.turns[later].sampled_ids) == odd


def test_an_answer_recorded_late_does_not_disturb_its_siblings(tree: TurnTree) -> None:
    slow = tree.place(talk(user("u1")))
    grow(tree, talk(user("u1")), "fast")
    grow(tree, talk(user("u1"), said("fast"), user("u2")), "a2")
    turn = tree.append(
        slow, generation(encode("slow")), answer=said("slow"), temperature=1.0, duration_s=1.0
    )
    assert (turn.index, turn.parent) == (2, None)
    assert len(Trace(session_id="s", turns=tree.turns).paths()) == 2


def test_tool_calls_are_compared_by_what_they_mean() -> None:
    start = empty_history(())

    def digest(call_id: str, arguments: str) -> bytes:
        return longer_history(start, said("", ToolCall(id=call_id, name="b", arguments=arguments)))

    assert digest("x", '{"a": 1, "b": 2}') == digest("y", '{"b":2,"a":1}')
    assert digest("x", '{"a": 1}') != digest("x", '{"a": 2}')
    assert digest("x", "{broken") != digest("x", "{")


def test_histories_cannot_be_confused_by_where_their_texts_end() -> None:
    def digest(*messages: Message) -> bytes:
        history = empty_history(())
        for message in messages:
            history = longer_history(history, message)
        return history

    assert digest(user("ab"), user("c")) != digest(user("a"), user("bc"))
    assert digest(user("a2:b")) != digest(user("a"), user("b"))
    assert digest(user("\ud800")) != digest(user("?"))


@pytest.mark.parametrize("seed", range(8))
def test_any_editing_agent_gets_the_prompt_it_asked_for(tree: TurnTree, seed: int) -> None:
    """Random drops, rewrites and retries: prompts always read as the messages sent."""
    draw = random.Random(seed)
    messages: list[Message] = [user("u")]
    asked = []
    for number in range(30):
        placement = tree.place(talk(*messages))
        asked.append((len(tree.turns), placement.prompt_ids))
        assert (
            decode(placement.prompt_ids)
            == "".join(f"<|im_start|>{m.role}\n{m.content}{END}\n" for m in messages)
            + "<|im_start|>assistant\n"
        )
        text = f"a{number}"
        ids = [i for part in text for i in encode(part)]
        if draw.random() < 0.7:
            ids.append(control(END))
        tree.append(placement, generation(ids), answer=said(text), temperature=1.0, duration_s=0.0)
        choice = draw.random()
        if choice < 0.6:
            messages += [said(text), user(f"u{number}")]
        elif choice < 0.75 and len(messages) > 2:
            messages = messages[: draw.randrange(1, len(messages), 2)]
        elif choice < 0.9:
            at = draw.randrange(len(messages))
            role = messages[at].role
            messages[at] = Message(role=role, content=f"edit{number}")
    trace = Trace(session_id="s", turns=tree.turns)
    for index, prompt in asked:
        assert trace.prompt_ids(tree.turns[index]) == prompt
    parents = {turn.parent for turn in tree.turns}
    answers: dict[Any, list[Turn]] = {}
    for turn in tree.turns:
        answers.setdefault((turn.parent, turn.context_ids), []).append(turn)
    kept = [
        turn
        for same in answers.values()
        for turn in ([t for t in same if t.index in parents] or same[-1:])
    ]
    num_trained = sum(sum(path.trainable) for path in trace.paths())
    assert num_trained == sum(len(turn.sampled_ids) for turn in kept)


def test_an_answer_that_was_asked_for_again_is_not_trained(tree: TurnTree) -> None:
    grow(tree, talk(user("u1")), "lost")
    grow(tree, talk(user("u1")), "used")
    grow(tree, talk(user("u1"), said("used"), user("u2")), "a2")
    grow(tree, talk(user("u1")), "asked for later, and left")
    paths = Trace(session_id="s", turns=tree.turns).paths()
    trained = [decode([i for i, t in zip(p.ids, p.trainable, strict=True) if t]) for p in paths]
    assert trained == ["", f"used{END}a2{END}", ""]


def test_the_last_of_several_answers_is_trained_when_none_was_gone_on_from(
    tree: TurnTree,
) -> None:
    for text in ("one", "two", "three"):
        grow(tree, talk(user("u1")), text)
    paths = Trace(session_id="s", turns=tree.turns).paths()
    assert [any(path.trainable) for path in paths] == [False, False, True]


# --- the ledger ---------------------------------------------------------------


def ledger(**options: Any) -> Ledger:
    return Ledger(ChatMLRenderer(tokenizer()), **options)


def test_a_trace_is_taken_once() -> None:
    book = ledger()
    session = book.open(SessionLimits())
    grow(session.tree, talk(user("u")), "a")
    assert book.get(session.session_id).trace.turns, "looking does not take"
    assert len(book.take(session.session_id).turns) == 1
    for again in (book.take, book.drop, book.get):
        with pytest.raises(UnknownSession, match=session.session_id):
            again(session.session_id)
    assert len(book) == 0


def test_ids_cannot_be_guessed() -> None:
    book = ledger()
    ids = {book.open(SessionLimits()).session_id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 32 for i in ids)


def test_a_full_ledger_refuses_and_recovers() -> None:
    book = ledger(max_sessions=2)
    first = book.open(SessionLimits())
    book.open(SessionLimits())
    with pytest.raises(LedgerFull, match="2 sessions"):
        book.open(SessionLimits())
    book.drop(first.session_id)
    book.open(SessionLimits())


def test_idle_sessions_expire_and_used_ones_do_not() -> None:
    clock = Clock()
    book = ledger(max_sessions=2, idle_timeout_s=10.0, clock=clock)
    old = book.open(SessionLimits())
    used = book.open(SessionLimits())
    clock.now_s += 8
    book.get(used.session_id)
    clock.now_s += 4
    book.open(SessionLimits())
    with pytest.raises(UnknownSession):
        book.get(old.session_id)
    book.get(used.session_id)


async def test_a_session_at_work_is_not_idle() -> None:
    clock = Clock()
    book = ledger(idle_timeout_s=10.0, clock=clock)
    session = book.open(SessionLimits())
    gate = asyncio.Event()
    work = asyncio.create_task(session.run(gate.wait()))
    await asyncio.sleep(0)
    clock.now_s += 60
    assert book.expire() == 0
    gate.set()
    assert await work
    assert book.expire() == 1


async def test_taking_ends_what_runs() -> None:
    book = ledger()
    session = book.open(SessionLimits())
    work = asyncio.create_task(session.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    book.take(session.session_id)
    with pytest.raises(UnknownSession, match="while it was answered"):
        await work


async def test_cancelling_a_caller_is_not_mistaken_for_a_taken_session() -> None:
    session = ledger().open(SessionLimits())
    work = asyncio.create_task(session.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not session.busy


def test_the_budget_counts_every_id_once_and_what_is_reserved() -> None:
    session = ledger().open(SessionLimits(max_total_tokens=100))
    grow(session.tree, talk(user("u")), "a")
    assert session.room == 100 - session.tree.num_ids
    with session.reserving(30):
        assert session.room == 70 - session.tree.num_ids
    assert session.room == 100 - session.tree.num_ids


def test_every_request_of_a_seeded_session_has_its_own_seed() -> None:
    def seeds(seed: int) -> list[int | None]:
        session = ledger().open(SessionLimits(seed=seed))
        return [session.next_seed() for _ in range(5)]

    assert len(set(seeds(7))) == 5
    assert seeds(7) == seeds(7)
    assert not set(seeds(7)) & set(seeds(8))
    assert ledger().open(SessionLimits()).next_seed() is None
