"""What the local engine samples, and the log-probabilities that it reports."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from engine_toys import (
    CONTEXT,
    VOCAB,
    engine_on,
    plain_model,
    prompt_of,
    started,
    toy_model,
    worst_error,
)

from palestra.errors import ContextOverflow
from palestra.policy.engines.sampler import RowSettings, sample
from palestra.records import FinishReason, SamplingParams

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("toy"))


async def test_logprobs_are_those_of_a_plain_pass_while_sequences_join_and_leave(
    folder: Path,
) -> None:
    draw = random.Random(0)
    jobs = [
        (
            prompt_of(draw.randrange(1, 150), seed=i),
            SamplingParams(
                temperature=draw.choice([0.0, 0.5, 1.0, 1.7]),
                top_p=draw.choice([1.0, 1.0, 0.8]),
                max_new_tokens=draw.randrange(1, 60),
                seed=i,
            ),
        )
        for i in range(40)
    ]
    async with engine_on(folder, max_batch=8) as engine:
        answers = await asyncio.gather(*(engine.generate(p, s) for p, s in jobs))
    for (prompt, sampling), answer in zip(jobs, answers, strict=True):
        assert len(answer.ids) == sampling.max_new_tokens
        assert worst_error(folder, prompt, answer, sampling) < TOLERANCE, sampling


async def test_requests_join_a_running_batch_one_by_one(folder: Path) -> None:
    jobs = [
        (prompt_of(20 + i), SamplingParams(temperature=t, max_new_tokens=200, seed=i))
        for i, t in enumerate([1.0, 0.5, 0.0, 2.0, 1.3, 0.7])
    ]
    async with engine_on(folder) as engine:
        tasks = []
        for job in jobs:
            tasks += await started(engine, job)
            await engine.generate(prompt_of(3), SamplingParams(max_new_tokens=2))
        assert not tasks[0].done(), "the first must still run for this test to mean something"
        answers = await asyncio.gather(*tasks)
    for (prompt, sampling), answer in zip(jobs, answers, strict=True):
        assert worst_error(folder, prompt, answer, sampling) < TOLERANCE, sampling


async def test_a_later_turn_computes_only_what_is_new(folder: Path) -> None:
    sampling = SamplingParams(max_new_tokens=30, seed=1)
    path = prompt_of(100)
    async with engine_on(folder) as engine:
        for turn in range(4):
            before = engine.num_prefilled_ids
            answer = await engine.generate(path, sampling)
            assert worst_error(folder, path, answer, sampling) < TOLERANCE, f"turn {turn}"
            computed = engine.num_prefilled_ids - before
            # All but the last id of the first prompt; then the new context, and the id
            # before it, which was sampled last and never fed.
            assert computed == (99 if turn == 0 else 20), f"turn {turn}"
            path = [*path, *answer.ids, *prompt_of(20, seed=turn)]


async def test_siblings_share_a_running_prompt(folder: Path) -> None:
    prompt, sampling = prompt_of(200), SamplingParams(max_new_tokens=300, seed=0)
    async with engine_on(folder) as engine:
        (first,) = await started(engine, (prompt, sampling))
        await engine.generate(prompt_of(3), SamplingParams(max_new_tokens=2))
        before = engine.num_prefilled_ids
        sibling = SamplingParams(max_new_tokens=10, seed=1)
        answer = await engine.generate(prompt, sibling)
        assert not first.done(), "the first must still run for this test to mean something"
        assert engine.num_prefilled_ids == before
        assert worst_error(folder, prompt, answer, sibling) < TOLERANCE
        assert worst_error(folder, prompt, await first, sampling) < TOLERANCE


async def test_siblings_that_come_together_compute_their_prompt_once(folder: Path) -> None:
    busy = (prompt_of(5, seed=7), SamplingParams(max_new_tokens=60, seed=9))
    jobs = [(prompt_of(200), SamplingParams(max_new_tokens=8, seed=i)) for i in range(6)]
    longer = [([*prompt_of(200), *prompt_of(10, seed=3)], SamplingParams(max_new_tokens=8))]
    async with engine_on(folder) as engine:
        (running,) = await started(engine, busy)
        answers = await asyncio.gather(*(engine.generate(*job) for job in jobs + longer))
        computed = engine.num_prefilled_ids
        await running
    # The running prompt, the siblings' once, and what the longer one adds: one id less
    # when a sibling had already sampled, and so fed the last id of the common prompt.
    assert computed in (4 + 199 + 10, 4 + 199 + 9)
    for (prompt, sampling), answer in zip(jobs + longer, answers, strict=True):
        assert worst_error(folder, prompt, answer, sampling) < TOLERANCE


async def test_long_prompts_are_prefilled_in_pieces(folder: Path) -> None:
    sampling = SamplingParams(max_new_tokens=3, seed=0)
    prompts = [prompt_of(n, seed=n) for n in (1, 2, 700, 800, 900, 901)]
    async with engine_on(folder, max_context=1000) as engine:
        answers = await asyncio.gather(*(engine.generate(p, sampling) for p in prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert worst_error(folder, prompt, answer, sampling) < TOLERANCE, len(prompt)


async def test_greedy_is_what_transformers_generates(folder: Path) -> None:
    prompts = [prompt_of(n) for n in (1, 7, 33, 80)]
    async with engine_on(folder) as engine:
        answers = await asyncio.gather(
            *(engine.generate(p, SamplingParams(temperature=0, max_new_tokens=40)) for p in prompts)
        )
    for prompt, answer in zip(prompts, answers, strict=True):
        generated = plain_model(folder).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
            pad_token_id=0,
        )
        assert list(answer.ids) == generated[0, len(prompt) :].tolist()


async def test_a_seed_gives_the_same_ids_alone_and_in_a_crowd(folder: Path) -> None:
    prompt, sampling = prompt_of(50), SamplingParams(max_new_tokens=60, seed=7)
    crowd = [
        (prompt_of(n, seed=n), SamplingParams(max_new_tokens=n, top_p=0.9)) for n in range(1, 20)
    ]
    async with engine_on(folder) as engine:
        alone = await engine.generate(prompt, sampling)
        others = await started(engine, *crowd)
        crowded = await engine.generate(prompt, sampling)
        await asyncio.gather(*others)
        other_seed = await engine.generate(prompt, SamplingParams(max_new_tokens=60, seed=8))
        unseeded = [
            await engine.generate(prompt, SamplingParams(max_new_tokens=60)) for _ in range(2)
        ]
    assert alone.ids == crowded.ids
    assert alone.ids != other_seed.ids
    assert unseeded[0].ids != unseeded[1].ids


async def test_sixty_four_at_once(folder: Path) -> None:
    sampling = SamplingParams(max_new_tokens=20, seed=3)
    prompts = [prompt_of(n, seed=n) for n in range(1, 65)]
    async with engine_on(folder, max_batch=16) as engine:
        answers = await asyncio.gather(*(engine.generate(p, sampling) for p in prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert worst_error(folder, prompt, answer, sampling) < TOLERANCE


async def test_bfloat16_is_near(folder: Path) -> None:
    sampling = SamplingParams(max_new_tokens=50, seed=0)
    async with engine_on(folder, dtype="bfloat16") as engine:
        answer = await engine.generate(prompt_of(50), sampling)
    assert 1e-5 < worst_error(folder, prompt_of(50), answer, sampling) < 0.3


async def test_a_stop_id_ends_the_answer_and_is_part_of_it(folder: Path) -> None:
    sampling = SamplingParams(max_new_tokens=200, seed=0)
    async with engine_on(folder) as engine:
        free = await engine.generate(prompt_of(5), sampling)
        stop = free.ids[3]
        sampling = SamplingParams(max_new_tokens=200, seed=0, stop_token_ids=(stop, VOCAB + 5))
        stopped = await engine.generate(prompt_of(5), sampling)
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert free.finish_reason is FinishReason.LENGTH


async def test_the_context_bounds_prompt_and_samples(folder: Path) -> None:
    sampling = SamplingParams(max_new_tokens=100)
    async with engine_on(folder) as engine:
        nearly_full = await engine.generate(prompt_of(CONTEXT - 3), sampling)
        assert nearly_full.finish_reason is FinishReason.LENGTH
        assert len(nearly_full.ids) == 3
        for length in (CONTEXT, CONTEXT + 1):
            with pytest.raises(ContextOverflow, match="no room"):
                await engine.generate(prompt_of(length), sampling)


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], SamplingParams(), "empty"),
        ([1, VOCAB], SamplingParams(), "not in the vocabulary"),
        ([1, -1], SamplingParams(), "not in the vocabulary"),
        ([1], SamplingParams(temperature=-1), "temperature"),
        ([1], SamplingParams(temperature=float("nan")), "temperature"),
        ([1], SamplingParams(top_p=0), "top_p"),
        ([1], SamplingParams(max_new_tokens=0), "max_new_tokens"),
    ],
)
async def test_a_bad_request_harms_nobody_else(
    folder: Path, prompt: list[int], sampling: SamplingParams, message: str
) -> None:
    async with engine_on(folder) as engine:
        with pytest.raises(ValueError, match=message):
            await engine.generate(prompt, sampling)
        assert (await engine.generate([1], SamplingParams(max_new_tokens=1))).ids


def test_samples_are_distributed_as_the_model_says() -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    num = 20_000
    settings = RowSettings.of([SamplingParams(temperature=0.8)] * num, torch.device("cpu"))
    draw = random.Random(0)
    ids, _ = sample(logits.expand(num, -1), settings, [draw.random() for _ in range(num)])
    seen = torch.bincount(torch.tensor(ids), minlength=12) / num
    wanted = torch.softmax(logits[0] / 0.8, dim=-1)
    sigma = (wanted * (1 - wanted) / num).sqrt()
    assert ((seen - wanted).abs() < 5 * sigma).all(), (seen, wanted)


def test_the_nucleus_is_respected_and_logprobs_stay_those_of_the_full_softmax() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = [SamplingParams(top_p=0.75)] * 99 + [SamplingParams()] * 99
    uniforms = [i / 99 for i in range(99)] * 2
    settings = RowSettings.of(rows, torch.device("cpu"))
    ids, logprobs = sample(probs.log().expand(198, -1), settings, uniforms)
    assert set(ids[:99]) == {0, 1}  # 0.5 does not reach 0.75, 0.5 + 0.3 does
    assert set(ids[99:]) == {0, 1, 2, 3}
    assert logprobs == pytest.approx(probs.log()[ids].tolist(), abs=1e-6)


def test_ids_of_probability_zero_are_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    settings = RowSettings.of([SamplingParams()] * 3, torch.device("cpu"))
    ids, _ = sample(logits, settings, [0.0, 0.5, 1 - 1e-12])
    assert ids == [1, 3, 3]
