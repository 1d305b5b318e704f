"""A fleet on a real vLLM server: ids, logprobs, and new weights in the middle of an answer.

Needs ``PALESTRA_TEST_VLLM="URL FOLDER OTHER_FOLDER"``: a server started as docs/engines.md
says with ``--dtype float32`` on the first of two folders of weights of one architecture, of
which tiny ones with heads of 64 and without tied embeddings are enough: vLLM 0.32.0 for CPU
does not give a tied output head its new weights.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import torch
from engine_toys import plain_logprobs

from palestra.errors import ContextOverflow, EngineError
from palestra.events import MemoryEvents
from palestra.policy.engines.fleet import Fleet, Place
from palestra.policy.engines.host import Elsewhere
from palestra.policy.engines.vllm import VLLMServer
from palestra.records import FinishReason, Generation, SamplingParams

SERVER = os.environ.get("PALESTRA_TEST_VLLM", "").split()
PROMPT = list(range(20, 60))
CLOSE = 2e-3

pytestmark = pytest.mark.skipif(len(SERVER) != 3, reason="PALESTRA_TEST_VLLM names no server")


def assert_of(generation: Generation, prompt: list[int], temperature: float) -> None:
    """Each logprob is that of the weights of its version, at the sampling temperature."""
    ids = [*prompt, *generation.ids]
    at = len(prompt) - 1
    for segment in generation.segments:
        folder = Path(SERVER[1 + segment.policy_version])
        every = plain_logprobs(folder, ids, temperature)
        expected = every[at : at + len(segment.ids)]
        gap = (expected - torch.tensor(segment.logprobs)).abs().max().item()
        assert gap < CLOSE, f"version {segment.policy_version} is off by {gap}"
        at += len(segment.ids)


def fleet_on(events: MemoryEvents) -> Fleet:
    place = Place(server=VLLMServer(SERVER[0]), host=Elsewhere())
    return Fleet([place], weights=Path(SERVER[1]), max_context=2000, events=events)


async def test_logprobs_are_those_of_the_sampling_temperature() -> None:
    async with fleet_on(MemoryEvents()) as fleet:
        for temperature in (1.0, 0.6, 0.0):
            sampling = SamplingParams(temperature=temperature, max_new_tokens=48)
            assert_of(await fleet.generate(PROMPT, sampling), PROMPT, temperature)
        stops = tuple(range(100, 300))
        stopped = await fleet.generate(
            PROMPT, SamplingParams(max_new_tokens=200, stop_token_ids=stops)
        )
        assert stopped.finish_reason is FinishReason.STOP
        assert stopped.ids[-1] in stops
        with pytest.raises(ContextOverflow):
            await VLLMServer(SERVER[0]).sample([5] * 5000, SamplingParams(), max_new_tokens=8)


async def test_new_weights_come_in_the_middle_of_answers() -> None:
    async with fleet_on(MemoryEvents()) as fleet:
        sampling = SamplingParams(max_new_tokens=600)
        asking = [asyncio.create_task(fleet.generate(PROMPT[n:], sampling)) for n in range(4)]
        await asyncio.sleep(0.5)
        await fleet.publish(Path(SERVER[2]), 1)
        answers = await asyncio.gather(*asking)
        for n, answer in enumerate(answers):
            assert_of(answer, PROMPT[n:], 1.0)
        versions = [[s.policy_version for s in answer.segments] for answer in answers]
        assert [0, 1] in versions, versions
        with pytest.raises(EngineError):
            await fleet.publish(Path("/nowhere"), 2)
        again = await fleet.generate(PROMPT, SamplingParams(max_new_tokens=20))
        assert [segment.policy_version for segment in again.segments] == [1]
        assert_of(again, PROMPT, 1.0)
