"""The SGLang client against SGLang's shapes: a front of ours over HTTP, and written answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from gateway_parts import FakeEngine, samples

from palestra.errors import ContextOverflow, EngineError
from palestra.policy.engines.sglang import SGLangEngine
from palestra.policy.engines.sglang_front import running_front
from palestra.records import FinishReason, SamplingParams
from palestra.serving import QuietServer, listen, wait_started

SAMPLING = SamplingParams(temperature=0.8, max_new_tokens=8, stop_token_ids=(9,))


@asynccontextmanager
async def answering(answer: Callable[[dict[str, Any]], Any]) -> AsyncIterator[SGLangEngine]:
    """A server whose ``/generate`` says what ``answer`` says of the body."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(request: Request) -> Any:
        return answer(await request.json())

    listener = listen("127.0.0.1", 0, doing="test")
    server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await wait_started(server, serving, error=EngineError)
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with SGLangEngine(url, max_context=64) as engine:
            yield engine
    finally:
        server.should_exit = True
        await serving
        listener.close()


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


def meta(pairs: list[tuple[float, int]], kind: str, version: str = "3") -> dict[str, Any]:
    return {
        "text": "x",
        "meta_info": {
            "finish_reason": {"type": kind},
            "weight_version": version,
            "output_token_logprobs": [[logprob, token, None] for logprob, token in pairs],
        },
    }


async def test_ids_and_logprobs_cross_http_unchanged() -> None:
    fake = FakeEngine(samples([5, 6, 9], [7]))
    async with running_front(fake) as running, SGLangEngine(running.url, max_context=64) as engine:
        await engine.health()
        generation = await engine.generate([1, 2, 3], SAMPLING)
        assert generation.ids == (5, 6, 9)
        assert generation.logprobs == (-0.25, -0.25, -0.25)
        assert generation.finish_reason is FinishReason.STOP
        assert {s.policy_version for s in generation.segments} == {3}
        assert engine.version == 3
        cut = await engine.generate([1], SAMPLING)
        assert (cut.ids, cut.finish_reason) == ((7,), FinishReason.LENGTH)
    assert fake.prompts == [[1, 2, 3], [1]]
    assert fake.samplings[0] == SAMPLING
    body = running.front.requests[0]
    assert "sampling_seed" not in body["sampling_params"]
    assert body["return_logprob"] is True
    assert body["sampling_params"]["no_stop_trim"] is True


async def test_logprobs_keep_every_bit() -> None:
    odd = [(-0.1234567890123456789, 4), (-1e-300, 5), (-5e-324, 9)]
    async with answering(lambda _: meta(odd, "stop")) as engine:
        generation = await engine.generate([1], SAMPLING)
    assert generation.logprobs == tuple(logprob for logprob, _ in odd)


async def test_what_an_abort_leaves_is_a_segment_that_goes_on() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        bodies.append(body)
        if len(bodies) == 1:
            return meta([(-1.0, 4), (-2.0, 5)], "abort", "3")
        return meta([(-3.0, 9)], "stop", "4")

    async with answering(answer) as engine:
        generation = await engine.generate([1, 2], SAMPLING)
        assert engine.version == 4
    assert [(s.ids, s.policy_version) for s in generation.segments] == [((4, 5), 3), ((9,), 4)]
    assert bodies[1]["input_ids"] == [1, 2, 4, 5]
    assert bodies[1]["sampling_params"]["max_new_tokens"] == 6


async def test_options_are_named_as_the_server_names_them() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        bodies.append(body["sampling_params"])
        wire = meta([(-1.0, 9)], "stop")
        wire["meta_info"]["cached_tokens"] = 2
        return wire

    more = replace(SAMPLING, stop=("END",), top_k=5, min_p=0.1, logit_bias=((7, -1.5),))
    async with answering(answer) as engine:
        assert set(more.distortions) | {"stop"} <= engine.sampling_options
        generation = await engine.generate([1, 2, 3], more)
        await engine.generate([1, 2, 3], SAMPLING)
    asked, plain = bodies
    added = {name: value for name, value in asked.items() if name not in plain}
    assert added == {"stop": ["END"], "top_k": 5, "min_p": 0.1, "logit_bias": {"7": -1.5}}
    assert generation.cached_tokens == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"text": "x"}, "no ids with logprobs"),
        (meta([], "stop"), "without logprobs"),
        (meta([(0.5, 4)], "stop"), "no ids with logprobs"),
        (meta([(-1.0, 4)], "tired"), "unknown reason 'tired'"),
        ([1], "answered a list"),
        (Response("oops"), "not JSON"),
        (Response("busy", status_code=503), "answered 503: busy"),
    ],
)
async def test_nonsense_is_the_engines_failure(answer: Any, words: str) -> None:
    async with answering(lambda _: answer) as engine:
        with pytest.raises(EngineError, match=words) as caught:
            await engine.generate([1], SAMPLING)
    assert "127.0.0.1" in str(caught.value)


async def test_no_room_is_an_overflow_here_and_there() -> None:
    said = Response(
        '{"error": {"message": "The input is longer than the model\'s context length"}}',
        status_code=400,
    )
    async with answering(lambda _: said) as engine:
        with pytest.raises(ContextOverflow):
            await engine.generate([1] * 64, SAMPLING)
        with pytest.raises(ContextOverflow, match="longer than"):
            await engine.generate([1], SAMPLING)


async def test_an_answer_never_passes_the_context() -> None:
    fake = FakeEngine(samples(list(range(10, 20))))
    async with running_front(fake) as running, SGLangEngine(running.url, max_context=6) as engine:
        generation = await engine.generate([1, 2, 3, 4], SAMPLING)
    assert generation.ids == (10, 11)


async def test_nobody_there_is_said_with_the_address() -> None:
    async with SGLangEngine("http://127.0.0.1:9", max_context=8) as engine:
        with pytest.raises(EngineError, match=r"127\.0\.0\.1:9 cannot be reached"):
            await engine.generate([1], SAMPLING)
        with pytest.raises(EngineError, match="cannot be reached"):
            await engine.health()


async def test_cancelling_ends_the_generation_there_too() -> None:
    fake = FakeEngine(samples([5]), gate=True)
    async with running_front(fake) as running, SGLangEngine(running.url, max_context=64) as engine:
        asking = asyncio.create_task(engine.generate([1], SAMPLING))
        await until(lambda: bool(fake.prompts))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: fake.cancelled == 1)
