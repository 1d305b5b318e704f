"""Which conversation of a trace a sample is made of, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from palestra.backends.miles.tokens import SampleTokens, tokens_of_messages, tokens_of_trace
from palestra.records import FinishReason, Segment, Trace, Turn
from palestra.run.policy import find_model, load_tokenizer


def turn(index: int, parent: int | None, context: list[int], *segments: list[int]) -> Turn:
    return Turn(
        index=index,
        parent=parent,
        context_ids=tuple(context),
        segments=tuple(
            Segment(ids=tuple(ids), logprobs=tuple(-i / 7 for i in ids), policy_version=index + n)
            for n, ids in enumerate(segments)
        ),
        finish_reason=FinishReason.STOP,
        temperature=0.8,
        duration_s=0.1,
    )


def tokens(*turns: Turn) -> SampleTokens:
    found = tokens_of_trace(Trace(session_id="s", turns=turns))
    assert found is not None
    return found


def test_one_conversation_is_taken_whole() -> None:
    got = tokens(turn(0, None, [1, 2], [3], [4]), turn(1, 0, [5], [6, 7]))
    assert got.ids_T == (1, 2, 3, 4, 5, 6, 7)
    assert got.loss_mask_R == (1, 1, 0, 1, 1)
    assert got.logprobs_R == (-3 / 7, -4 / 7, 0.0, -6 / 7, -1.0)
    assert got.versions == (0, 1, 1)
    assert got.num_left_out == 0


def test_an_answer_that_was_asked_for_again_is_left_out_however_long() -> None:
    first = turn(0, None, [1], [2])
    given_up = turn(1, 0, [3], [4, 4, 4, 4, 4])
    taken = turn(2, 0, [3], [5])
    got = tokens(first, given_up, taken)
    assert got.ids_T == (1, 2, 3, 5)
    assert got.num_left_out == 5


def test_of_rewritten_histories_the_one_with_most_sampled_ids_is_taken() -> None:
    long = (turn(0, None, [1], [2, 2]), turn(1, 0, [3], [4, 4]))
    summary = turn(2, None, [9], [8])
    got = tokens(*long, summary)
    assert got.ids_T == (1, 2, 2, 3, 4, 4)
    assert got.num_left_out == 1
    later = turn(2, None, [9], [8, 8, 8, 8])
    assert tokens(*long, later).ids_T == (9, 8, 8, 8, 8), "the later of two that are as long"


def test_a_shared_beginning_is_trained_on_in_the_branch_that_is_taken() -> None:
    shared = turn(0, None, [1], [2])
    got = tokens(shared, turn(1, 0, [3], [4]), turn(2, 0, [5], [6, 7]))
    assert got.ids_T == (1, 2, 5, 6, 7)
    assert got.loss_mask_R == (1, 0, 1, 1)


def test_nothing_sampled_makes_no_sample() -> None:
    assert tokens_of_trace(Trace(session_id="s", turns=())) is None
    assert tokens_of_trace(Trace(session_id="s", turns=(turn(0, None, [1]),))) is None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(find_model("demo"))


def test_messages_are_masked_by_what_the_template_shows_of_them(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ls"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nls -a"},
        {"role": "user", "content": "ls -a"},
        {"role": "assistant", "content": "ls -a"},
    ]
    got = tokens_of_messages(messages, tokenizer)
    assert got is not None
    assert got.logprobs_R is None
    response = got.ids_T[-len(got.loss_mask_R) :]
    trained = [i for i, mask in zip(response, got.loss_mask_R, strict=True) if mask]
    text = tokenizer.decode(trained, skip_special_tokens=False)
    assert text == "<think>\nhm\n</think>\n\nls -a<|im_end|>ls -a<|im_end|>"
    assert tokens_of_messages(messages[:2], tokenizer) is None


def test_turns_are_not_changed_by_it() -> None:
    turns = (turn(0, None, [1], [2]), turn(1, None, [3], [4, 5]))
    copies = tuple(replace(t) for t in turns)
    tokens(*turns)
    assert turns == copies
