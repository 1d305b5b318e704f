"""Small real parts for the tests of rendering and gateway: a tokenizer and an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from palestra.errors import ContextOverflow
from palestra.records import FinishReason, Generation, SamplingParams, Segment

_TEXTS = ["user\n", "assistant\n", "system\n", "ab ab ab", "hello world", "\n\n"] * 20


@cache
def tokenizer(*, with_tool_tokens: bool = False, special: bool = True) -> Any:
    """A byte-level BPE with ChatML's control tokens that merges 'a' and 'b' into 'ab'."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(_TEXTS, trainer)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
    if with_tool_tokens:
        extra = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
        extra += ["<think>", "</think>"]
        tok.add_tokens([AddedToken(name, special=False, normalized=False) for name in extra])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>")


def encode(text: str) -> list[int]:
    """Canonical ids of plain text."""
    ids: list[int] = tokenizer().encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def control(name: str) -> int:
    """The id of a control token."""
    token_id: int = tokenizer().convert_tokens_to_ids(name)
    return token_id


def decode(ids: Sequence[int]) -> str:
    """Ids to text, control tokens included."""
    text: str = tokenizer().decode(list(ids), skip_special_tokens=False)
    return text


Reply = Callable[[list[int]], Sequence[int]]


class FakeEngine:
    """Samples what ``reply`` says of the prompt's ids, cut at the sampling limit.

    Keeps every prompt, sampling and sample; waits for ``gate`` when one is set.
    """

    def __init__(self, reply: Reply, *, max_context: int = 4096, gate: bool = False) -> None:
        self._reply = reply
        self.max_context = max_context
        self.version = 3
        self.gate: asyncio.Event | None = asyncio.Event() if gate else None
        self.prompts: list[list[int]] = []
        self.samplings: list[SamplingParams] = []
        self.sampled: list[list[int]] = []
        self.cancelled = 0
        self.failure: Exception | None = None

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        if self.failure is not None:
            raise self.failure
        if len(prompt_ids) >= self.max_context:
            raise ContextOverflow("the engine has no room")
        self.prompts.append(list(prompt_ids))
        self.samplings.append(sampling)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        ids = list(self._reply(list(prompt_ids)))
        cut = ids[: sampling.max_new_tokens]
        stopped = bool(cut) and cut[-1] in sampling.stop_token_ids
        self.sampled.append(cut)
        # Two segments, as after a swap of weights in the middle.
        half = len(cut) // 2
        segments = tuple(
            Segment(ids=tuple(part), logprobs=tuple(-0.25 for _ in part), policy_version=version)
            for part, version in ((cut[:half], 2), (cut[half:], 3))
            if part
        )
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Generation(segments=segments, finish_reason=reason)

    async def publish(self, weights: Path, version: int) -> None:
        self.version = version

    async def health(self) -> None:
        if self.failure is not None:
            raise self.failure


def says(*texts: str) -> Reply:
    """Say the texts one after the other, each closed; the last for ever."""
    queue = list(texts)

    def reply(_: list[int]) -> list[int]:
        text = queue.pop(0) if len(queue) > 1 else queue[0]
        return [*encode(text), control("<|im_end|>")]

    return reply


def samples(*ids: Sequence[int]) -> Reply:
    """Sample the given ids one after the other; the last for ever."""
    queue = list(ids)

    def reply(_: list[int]) -> Sequence[int]:
        return queue.pop(0) if len(queue) > 1 else queue[0]

    return reply


async def until(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Return once ``condition`` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is awaited is the state of other code
            await asyncio.sleep(0.01)
