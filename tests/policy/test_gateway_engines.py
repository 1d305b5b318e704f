"""The gateway on real engines: a random model that samples ids no tokenizer would write."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from palestra.config import EngineSection
from palestra.policy.engines.local import LocalEngine
from palestra.policy.engines.protocol import Engine
from palestra.policy.engines.scripted import ScriptedEngine
from palestra.policy.gateway import Gateway, running_gateway
from palestra.policy.rendering import load_renderer
from palestra.policy.tiny import make_tiny_model
from palestra.records import Generation, SamplingParams, Trace
from palestra.wire import trace_from_wire

NUM_SESSIONS, NUM_TURNS = 6, 4


class Recording:
    """Passes everything on to an engine and keeps what it was asked and answered."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.calls: list[tuple[tuple[int, ...], Generation]] = []

    @property
    def version(self) -> int:
        return self._engine.version

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        generation = await self._engine.generate(prompt_ids, sampling)
        self.calls.append((tuple(prompt_ids), generation))
        return generation

    async def publish(self, weights: Path, version: int) -> None:
        await self._engine.publish(weights, version)

    async def health(self) -> None:
        await self._engine.health()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [inspect.getsource(asyncio.tasks)]
    return make_tiny_model(
        tmp_path_factory.mktemp("tiny"), texts=texts, vocab_size=400, hidden_size=32, num_layers=1
    )


async def converse(client: httpx.AsyncClient, number: int) -> Trace:
    opened = (await client.post("/sessions", json={"max_new_tokens": 12})).json()
    history: list[dict[str, Any]] = [{"role": "user", "content": f"def f{number}(x):"}]
    for turn in range(NUM_TURNS):
        answer = await client.post(
            f"{opened['base_url']}/chat/completions", json={"messages": history}
        )
        assert answer.status_code == 200, answer.text
        history += [
            answer.json()["choices"][0]["message"],
            {"role": "user", "content": f"    return {turn}\n"},
        ]
    taken = await client.get(f"/sessions/{opened['session_id']}?take=true")
    return trace_from_wire(taken.json())


async def traces_of(engine: Recording, model: Path) -> list[Trace]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    gateway = Gateway(engine, load_renderer("chatml", tokenizer), tokenizer, model_name="tiny")
    async with (
        running_gateway(gateway) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        return await asyncio.gather(*(converse(client, n) for n in range(NUM_SESSIONS)))


def assert_exact(traces: list[Trace], engine: Recording) -> None:
    """Every turn is one of the engine's calls, ids, logprobs and prompt alike."""
    calls = dict(engine.calls)
    assert len(calls) == len(engine.calls) == NUM_SESSIONS * NUM_TURNS
    for trace in traces:
        assert [turn.parent for turn in trace.turns] == [None, *range(NUM_TURNS - 1)]
        for turn in trace.turns:
            generation = calls.pop(trace.prompt_ids(turn))
            assert (turn.segments, turn.finish_reason) == (
                generation.segments,
                generation.finish_reason,
            )
        (path,) = trace.paths()
        sampled = [i for turn in trace.turns for i in turn.sampled_ids]
        assert [i for i, t in zip(path.ids, path.trainable, strict=True) if t] == sampled
    assert not calls


async def test_what_a_random_model_samples_is_kept_id_for_id(model: Path) -> None:
    section = EngineSection(max_batch=NUM_SESSIONS, num_threads=1)
    async with LocalEngine(model, section=section, max_context=512, device="cpu") as local:
        engine = Recording(local)
        traces = await traces_of(engine, model)
    assert_exact(traces, engine)
    tokenizer = AutoTokenizer.from_pretrained(model)
    odd = 0
    for _, generation in engine.calls:
        text = tokenizer.decode(generation.ids, skip_special_tokens=False)
        odd += tuple(tokenizer.encode(text, add_special_tokens=False)) != generation.ids
    assert odd > len(engine.calls) / 2, "the samples must be ones that re-tokenising would change"


async def test_a_scripted_policy_is_kept_id_for_id(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    engine = Recording(
        ScriptedEngine(
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
            lambda prompt: f"I have read {len(prompt)} letters.",
            stop_id=tokenizer.eos_token_id,
        )
    )
    assert_exact(await traces_of(engine, model), engine)
