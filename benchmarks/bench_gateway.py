"""What the gateway's benchmarks share: an engine with a fixed latency, a tokenizer, a session."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from palestra.policy.gateway.history import Conversation
from palestra.policy.gateway.tree import TurnTree
from palestra.policy.rendering import Renderer, load_renderer
from palestra.policy.tiny import make_tiny_model
from palestra.records import FinishReason, Generation, Message, SamplingParams, Segment

SOURCE = inspect.getsource(argparse)  # text like that which an agent reads
OBSERVATION_CHARS = 640
ANSWER = "THOUGHT: look at the parser\n\n```mswea_bash_command\nsed -n '1,80p' argparse.py\n```"


class SlowEngine:
    """Answers with the same ids after ``latency_s``."""

    max_context = 1 << 20
    version = 0

    def __init__(self, ids: Sequence[int], *, latency_s: float) -> None:
        segment = Segment(ids=tuple(ids), logprobs=(-0.5,) * len(ids), policy_version=0)
        self.answer = Generation(segments=(segment,), finish_reason=FinishReason.STOP)
        self.latency_s = latency_s

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """The answer."""
        await asyncio.sleep(self.latency_s)
        return self.answer

    async def publish(self, weights: Path, version: int) -> None:
        """Nothing to publish."""

    async def health(self) -> None:
        """Always well."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The parts that every measurement uses."""

    tokenizer: Any
    renderer: Renderer
    answer_ids: tuple[int, ...]

    @classmethod
    def build(cls) -> Bench:
        """Make a tokenizer that has learnt the text it will read."""
        with tempfile.TemporaryDirectory() as folder:
            make_tiny_model(Path(folder), texts=[SOURCE], vocab_size=2048, hidden_size=8)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.encode(ANSWER, add_special_tokens=False)
        renderer = load_renderer("chatml", tokenizer)
        return cls(tokenizer, renderer, (*ids, renderer.get_stop_token_ids()[0]))


def observation(number: int) -> str:
    """What the agent is shown after a turn."""
    start = number * 97 % (len(SOURCE) - OBSERVATION_CHARS)
    return SOURCE[start : start + OBSERVATION_CHARS]


def conversation(num_turns: int) -> Conversation:
    """What is asked at a turn, the first one being 1."""
    messages = [Message(role="user", content=observation(0))]
    for number in range(1, num_turns):
        messages += [
            Message(role="assistant", content=ANSWER),
            Message(role="user", content=observation(number)),
        ]
    return Conversation(messages=tuple(messages))


def grown(bench: Bench, num_turns: int) -> TurnTree:
    """A session's tree before its last turn is answered."""
    tree, whole = TurnTree(bench.renderer), conversation(num_turns)
    answer = Message(role="assistant", content=ANSWER)
    for turn in range(1, num_turns):
        asked = Conversation(messages=whole.messages[: 2 * turn - 1])
        logprobs = tuple(-0.5 - i * 1e-6 for i in range(len(bench.answer_ids)))
        segment = Segment(ids=bench.answer_ids, logprobs=logprobs, policy_version=0)
        generation = Generation(segments=(segment,), finish_reason=FinishReason.STOP)
        tree.append(tree.place(asked), generation, answer=answer, temperature=1.0, duration_s=0.0)
    return tree
