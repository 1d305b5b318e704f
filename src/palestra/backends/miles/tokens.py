"""From what is known of an episode's tokens to the fields that a Miles sample wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from palestra.records import Trace, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTokens:
    """One conversation as ids: T of them, of which R follow the first prompt.

    Attributes:
        ids_T: prompt and response.
        loss_mask_R: 1 exactly where the id was sampled.
        logprobs_R: of the sampled ids, 0.0 elsewhere; ``None`` where nobody knows them.
        versions: of the weights, one for each segment in order.
        num_left_out: ids that were sampled on other branches, which no sample holds.
    """

    ids_T: tuple[int, ...]
    loss_mask_R: tuple[int, ...]
    logprobs_R: tuple[float, ...] | None
    versions: tuple[int, ...] = ()
    num_left_out: int = 0


def tokens_of_trace(trace: Trace) -> SampleTokens | None:
    """The one conversation of a trace that its sample is made of; ``None`` without any.

    A rollout is exactly one sample, since a list of them breaks Miles' normalisation of
    rewards. Where the agent rewrote its history the trace has several branches. Answers
    that the agent asked for again and did not go on from are passed over; of the branches
    that are left, the one with the most sampled ids is taken, the later one of two.
    """
    branches = [_chain(trace.turns, leaf) for leaf in _leaves(trace.turns)]
    branches = [branch for branch in branches if _num_sampled(branch)]
    if not branches:
        return None
    best = max(branches, key=lambda branch: (_num_sampled(branch), branch[-1].index))
    path = _alone(best).paths()[0]
    num_prompt = len(best[0].context_ids)
    return SampleTokens(
        ids_T=path.ids,
        loss_mask_R=tuple(map(int, path.trainable[num_prompt:])),
        logprobs_R=path.logprobs[num_prompt:],
        versions=tuple(s.policy_version for turn in best for s in turn.segments),
        num_left_out=_num_sampled(trace.turns) - _num_sampled(best),
    )


def tokens_of_messages(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any
) -> SampleTokens | None:
    """A guess at the conversation, by rendering it through the tokenizer's chat template.

    What was sampled is tokenised anew, so ids and positions may differ from the sampled
    ones, and logprobs are not known. The mask covers the contents of the assistant's
    messages as the template shows them, and the token that closes each.
    """
    if not any(message.get("role") == "assistant" for message in messages):
        return None
    text: str = tokenizer.apply_chat_template(list(map(dict, messages)), tokenize=False)
    spans = _assistant_spans(text, messages, closing=tokenizer.decode([tokenizer.eos_token_id]))
    if not spans:
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple(encoded["input_ids"])
    sampled = [
        any(begin < end_of_span and end > start_of_span for start_of_span, end_of_span in spans)
        for begin, end in encoded["offset_mapping"]
    ]
    if not any(sampled):
        return None
    num_prompt = sampled.index(True)
    return SampleTokens(
        ids_T=ids, loss_mask_R=tuple(map(int, sampled[num_prompt:])), logprobs_R=None
    )


def _leaves(turns: Sequence[Turn]) -> list[Turn]:
    parents = {turn.parent for turn in turns}
    newest = {(turn.parent, turn.context_ids): turn.index for turn in turns}
    return [
        turn
        for turn in turns
        if turn.index not in parents and newest[turn.parent, turn.context_ids] == turn.index
    ]


def _chain(turns: Sequence[Turn], leaf: Turn) -> list[Turn]:
    chain = [leaf]
    while (parent := chain[-1].parent) is not None:
        chain.append(turns[parent])
    return chain[::-1]


def _num_sampled(turns: Sequence[Turn]) -> int:
    return sum(len(turn.sampled_ids) for turn in turns)


def _alone(chain: Sequence[Turn]) -> Trace:
    """The trace of a session that had this branch only: all of it is trained on."""
    turns = (
        replace(turn, index=index, parent=index - 1 if index else None)
        for index, turn in enumerate(chain)
    )
    return Trace(session_id="", turns=tuple(turns))


def _assistant_spans(
    text: str, messages: Sequence[Mapping[str, Any]], *, closing: str
) -> list[tuple[int, int]]:
    spans = []
    at = 0
    for message in messages:
        content = str(message.get("content") or "").strip()
        begin = text.find(content, at)
        if begin < 0:
            # Templates drop the thinking of earlier turns.
            content = content.rpartition("</think>")[2].strip()
            begin = text.find(content, at)
        if begin < 0 or not content:
            continue
        at = begin + len(content)
        if message.get("role") == "assistant":
            if text.startswith(closing, at):
                at += len(closing)
            spans.append((begin, at))
    return spans
