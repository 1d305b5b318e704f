"""The hooks on Miles' real types, a live environment server, the gateway and the local engine."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from miles_parts import (
    MODEL,
    SAMPLING,
    demo_engine,
    environment,
    forget_miles_state,
    kata_rows,
    miles_args,
    real_miles,
)

from palestra.config import Recipe
from palestra.errors import ConfigError, EnvironmentUnavailable
from palestra.policy.engines.protocol import Engine
from palestra.policy.engines.sglang_front import RunningFront, running_front
from palestra.run.policy import load_tokenizer, serving

Sample = real_miles("miles.utils.types").Sample
hooks = real_miles("palestra.backends.miles")
service = real_miles("palestra.backends.miles.service")

NUM_SAMPLES = 6


@pytest.fixture(autouse=True)
async def closed_afterwards() -> AsyncIterator[None]:
    yield
    await service.close_service()
    forget_miles_state()


@asynccontextmanager
async def miles(
    folder: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, **more: Any
) -> AsyncIterator[tuple[Namespace, RunningFront]]:
    async with environment(folder, monkeypatch) as url, running_front(engine) as front:
        try:
            yield miles_args(front, url, **more), front
        finally:
            await service.close_service()


def sample_of(row: dict[str, Any], index: int = 0) -> Any:
    return Sample(
        index=index,
        group_index=0,
        prompt=row["problem_statement"],
        metadata={**row, "subset": "gym", "split": "train"},
    )


def assert_exact(sample: Any, front: RunningFront) -> None:
    """The sample is one of the engine's conversations, id for id and bit for bit."""
    sample.validate()
    num_prompt = len(sample.tokens) - sample.response_length
    want_mask: list[int] = []
    want_logprobs: list[float] = []
    at = num_prompt
    turns = sorted(
        (
            (prompt, answer)
            for prompt, answer in front.front.answers
            if tuple(sample.tokens[: len(prompt)]) == prompt
            and tuple(sample.tokens[len(prompt) : len(prompt) + len(answer.ids)]) == answer.ids
        ),
        key=lambda turn: len(turn[0]),
    )
    assert turns, "nothing in the sample was sampled by the engine"
    assert len(turns[0][0]) == num_prompt
    for prompt, answer in turns:
        want_mask += [0] * (len(prompt) - at) + [1] * len(answer.ids)
        want_logprobs += [0.0] * (len(prompt) - at) + list(answer.logprobs)
        at = len(prompt) + len(answer.ids)
    assert at == len(sample.tokens)
    assert sample.loss_mask == want_mask
    assert [lp.hex() for lp in sample.rollout_log_probs] == [lp.hex() for lp in want_logprobs]


async def test_samples_are_what_the_engine_sampled_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = kata_rows(NUM_SAMPLES)
    async with demo_engine() as engine, miles(tmp_path, monkeypatch, engine) as (args, front):
        samples = await asyncio.gather(
            *(hooks.generate(args, sample_of(row, i), dict(SAMPLING)) for i, row in enumerate(rows))
        )
        for sample in samples:
            assert_exact(sample, front)
        num_sampled = sum(len(answer.ids) for _, answer in front.front.answers)
        assert sum(sum(sample.loss_mask) for sample in samples) == num_sampled
        rewards = await hooks.reward_func(args, samples)
    assert all(body["sampling_params"]["temperature"] == 0.8 for body in front.front.requests)
    for sample, reward, row in zip(samples, rewards, rows, strict=True):
        assert sample.status in (Sample.Status.COMPLETED, Sample.Status.TRUNCATED)
        assert sample.reward == reward == sample.metadata["reward"]
        assert reward in (0.0, 1.0)
        assert sample.metadata["agent_metrics"]["turns"] >= 1
        assert sample.metadata["instance_id"] == row["instance_id"]
        assert set(sample.weight_versions) == {"7"}
        report = sample.metadata["eval_report"]["eval_report"][row["instance_id"].lower()]
        assert report["resolved"] is (reward == 1.0)
        assert not sample.remove_sample


async def test_an_infra_error_aborts_its_sample_and_the_filter_drops_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = kata_rows(1)[0]
    # Whatever ends a test run before its tests begin is the task's or the machine's trouble.
    broken = {**row, "eval_script": "exit 3\n" + row["eval_script"]}
    async with demo_engine() as engine, miles(tmp_path, monkeypatch, engine) as (args, _):
        good, bad = await asyncio.gather(
            hooks.generate(args, sample_of(row, 0), dict(SAMPLING)),
            hooks.generate(args, sample_of(broken, 1), dict(SAMPLING)),
        )
        assert good.status is not Sample.Status.ABORTED
        assert bad.status is Sample.Status.ABORTED
        assert bad.reward is None
        assert await hooks.reward_func(args, bad) is None
        assert (bad.tokens, bad.loss_mask, bad.remove_sample) == ([], [], True)
        assert bad.metadata["outcome"] == "infra_error"
        assert bad.metadata["error"]
        dropped = hooks.dynamic_filter(args, [good, bad])
        assert (dropped.keep, dropped.reason) == (False, "group_has_aborted")

        # Miles puts a group that it did not finish back: its samples are rolled out again.
        bad.metadata["eval_script"] = row["eval_script"]
        again = await hooks.generate(args, bad, dict(SAMPLING))
        assert again is bad
        assert again.status is not Sample.Status.ABORTED
        assert again.metadata["error"] is None
        assert not again.remove_sample
        again.validate()


async def test_a_server_that_goes_away_aborts_samples_and_is_named_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = kata_rows(1)[0]
    async with demo_engine() as engine, running_front(engine) as front:
        async with environment(tmp_path, monkeypatch) as url:
            args = miles_args(front, url)
            await hooks.generate(args, sample_of(row), dict(SAMPLING))
        sample = await hooks.generate(args, sample_of(row), dict(SAMPLING))
        assert sample.status is Sample.Status.ABORTED
        assert sample.metadata["exit_status"] == "EnvironmentUnavailable"
        await service.close_service()
        with pytest.raises(EnvironmentUnavailable, match=url.removeprefix("http://")):
            await hooks.generate(args, sample_of(row), dict(SAMPLING))


async def test_when_miles_ends_its_rollout_the_episode_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging:
        version, max_context = 0, 640
        asked = asyncio.Event()

        async def generate(self, *_: Any) -> Any:
            self.asked.set()
            await asyncio.Event().wait()

        async def health(self) -> None: ...

    class State:
        aborted = False
        tokenizer = real_miles("transformers").AutoTokenizer.from_pretrained(MODEL)

    state = State()
    engine: Any = Hanging()
    generation = real_miles("palestra.backends.miles.generation")
    monkeypatch.setattr(generation, "miles_state", lambda _: state)
    async with miles(tmp_path, monkeypatch, engine) as (args, _):
        rolling = asyncio.create_task(
            hooks.generate(args, sample_of(kata_rows(1)[0]), dict(SAMPLING))
        )
        async with asyncio.timeout(60):
            await engine.asked.wait()
            state.aborted = True
            sample = await rolling
        assert sample.status is Sample.Status.ABORTED
        opened = await service.service_of(args, state)
        assert len(opened.front.gateway.ledger) == 0
        async with httpx.AsyncClient(base_url=args.palestra_environment_url) as http:
            for _ in range(600):
                if not (await http.get("/status")).json()["episodes"]:
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("the episode goes on although nobody waits for it")


async def test_without_a_renderer_messages_are_rendered_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "find_renderer", lambda *_, **__: None)
    rows = kata_rows(2)
    async with (
        demo_engine() as engine,
        serving(engine, load_tokenizer(MODEL), Recipe(), name="router") as router,
        environment(tmp_path, monkeypatch) as url,
    ):
        host, port = router.removeprefix("http://").split(":")
        front: Any = Namespace(host=host, port=port)
        args = miles_args(front, url, use_tis=False)
        samples = [await hooks.generate(args, sample_of(row), dict(SAMPLING)) for row in rows]
        await service.close_service()
        with pytest.raises(ConfigError, match="--use-tis needs"):
            await hooks.generate(
                miles_args(front, url, use_tis=True), sample_of(rows[0]), dict(SAMPLING)
            )
    said = [r for r in caplog.records if "NO GATEWAY" in r.getMessage()]
    assert len(said) == 1
    tokenizer = load_tokenizer(MODEL)
    for sample in samples:
        sample.validate()
        assert sample.rollout_log_probs is None
        trained = [
            token
            for token, mask in zip(
                sample.tokens[-sample.response_length :], sample.loss_mask, strict=True
            )
            if mask
        ]
        answers = [m["content"] for m in sample.metadata["messages"] if m["role"] == "assistant"]
        text = tokenizer.decode(trained, skip_special_tokens=False)
        assert text == "".join(f"{answer.strip()}<|im_end|>" for answer in answers)


async def test_sampling_that_the_gateway_cannot_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = Namespace(version=0, max_context=640)
    async with miles(tmp_path, monkeypatch, engine) as (args, _):
        with pytest.raises(ConfigError, match="top_k is 20"):
            await hooks.generate(args, sample_of(kata_rows(1)[0]), {**SAMPLING, "top_k": 20})
