"""The vLLM client against vLLM's shapes: written answers over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from palestra.errors import ContextOverflow, EngineError
from palestra.policy.engines.remote import ServerBusy, ServerGone
from palestra.policy.engines.vllm import VLLMServer
from palestra.records import SamplingParams
from palestra.serving import QuietServer, listen, wait_started

SAMPLING = SamplingParams(temperature=0.8, max_new_tokens=8, stop_token_ids=(9,), seed=5)

Said = Callable[[str, Any], Any]


@asynccontextmanager
async def answering(answer: Said) -> AsyncIterator[VLLMServer]:
    """A server that says to every path and body what ``answer`` says."""
    app = FastAPI()

    @app.post("/{path:path}")
    async def say(path: str, request: Request) -> Any:
        return answer(f"{path}?{request.url.query}", await request.json())

    listener = listen("127.0.0.1", 0, doing="test")
    server = QuietServer(uvicorn.Config(app, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await wait_started(server, serving, error=EngineError)
    vllm = VLLMServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        yield vllm
    finally:
        await vllm.aclose()
        server.should_exit = True
        await serving
        listener.close()


def sampled(
    ids: list[int], reason: str, *versions: tuple[str, int, int], **usage: Any
) -> dict[str, Any]:
    """An answer as vLLM 0.32 gives it."""
    return {
        "request_id": "r",
        "usage": {"prompt_tokens": 3, "completion_tokens": len(ids), **usage},
        "choices": [
            {
                "index": 0,
                "finish_reason": reason,
                "stop_reason": None,
                "token_ids": ids,
                "logprobs": {
                    "content": [
                        {"token_id": i, "logprob": -i / 8, "rank": 1, "top_logprobs": []}
                        for i in ids
                    ]
                },
                "weight_versions": [
                    {"version": name, "start": start, "end": end} for name, start, end in versions
                ],
            }
        ],
    }


async def test_ids_and_logprobs_cross_http_unchanged() -> None:
    bodies: list[tuple[str, Any]] = []

    def answer(path: str, body: Any) -> Any:
        bodies.append((path, body))
        details = {"prompt_tokens_details": {"cached_tokens": 2}}
        return sampled([5, 6, 9], "stop", ("7-ab", 0, 3), **details)

    async with answering(answer) as vllm:
        sample = await vllm.sample([1, 2, 3], SAMPLING, max_new_tokens=8)
    assert (sample.ids, sample.logprobs) == ((5, 6, 9), (-0.625, -0.75, -1.125))
    assert (sample.end, sample.stamp, sample.num_cached) == ("stop", "7-ab", 2)
    ((path, body),) = bodies
    assert path == "inference/v1/generate?"
    assert body["token_ids"] == [1, 2, 3]
    assert body["sampling_params"] == {
        "temperature": 0.8,
        "top_p": 1.0,
        "max_tokens": 8,
        "stop_token_ids": [9],
        "logprobs": 0,
        "detokenize": False,
        "seed": 5,
    }


async def test_what_was_aborted_before_its_first_id_is_of_no_weights() -> None:
    async with answering(lambda *_: sampled([], "abort")) as vllm:
        sample = await vllm.sample([1], SAMPLING, max_new_tokens=8)
    assert (sample.ids, sample.end, sample.stamp) == ((), "abort", None)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (sampled([4, 5], "stop", ("a", 0, 1), ("b", 1, 2)), EngineError, "weights a and b in one"),
        (sampled([4], "tired", ("a", 0, 1)), EngineError, "unknown reason 'tired'"),
        ({"choices": []}, EngineError, "no ids with logprobs"),
        (Response("busy", status_code=503), ServerBusy, "answered 503: busy"),
        (
            Response('{"error": {"message": "maximum context length is 8"}}', status_code=400),
            ContextOverflow,
            "maximum context length",
        ),
    ],
)
async def test_nonsense_is_the_engines_failure(
    answer: Any, kind: type[Exception], words: str
) -> None:
    async with answering(lambda *_: answer) as vllm:
        with pytest.raises(kind, match=words):
            await vllm.sample([1], SAMPLING, max_new_tokens=8)


async def test_weights_are_read_between_a_pause_and_a_resume() -> None:
    told: list[tuple[str, Any]] = []

    def answer(path: str, body: Any) -> Any:
        told.append((path, body))
        return {}

    async with answering(answer) as vllm:
        await vllm.load(Path("/weights/7"), "7-ab")
    assert told == [
        ("pause?mode=abort", {}),
        (
            "collective_rpc?",
            {"method": "reload_weights", "kwargs": {"weights_path": "/weights/7"}},
        ),
        ("reset_prefix_cache?", {}),
        ("update_weight_version?", {"new_version": "7-ab"}),
        ("resume?", {}),
    ]


async def test_a_server_whose_weights_failed_is_not_resumed() -> None:
    told: list[str] = []

    def answer(path: str, _: Any) -> Any:
        told.append(path)
        return Response("no such folder", status_code=500) if "rpc" in path else {}

    async with answering(answer) as vllm:
        with pytest.raises(EngineError, match="collective_rpc with 500: no such folder"):
            await vllm.load(Path("/weights/7"), "7-ab")
    assert told == ["pause?mode=abort", "collective_rpc?"]


async def test_a_server_without_the_endpoints_says_what_it_takes() -> None:
    async with answering(lambda *_: Response("Not Found", status_code=404)) as vllm:
        with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
            await vllm.load(Path("/weights/7"), "7-ab")


async def test_nobody_there_is_said_with_the_address() -> None:
    vllm = VLLMServer("http://127.0.0.1:9")
    with pytest.raises(ServerGone, match=r"127\.0\.0\.1:9 cannot be reached"):
        await vllm.health()
    await vllm.aclose()
