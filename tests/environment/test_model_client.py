"""The client of the policy against a scripted server: retries, refusals, nonsense."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from palestra.environment.agents.fake_model import ScriptedModelServer, ScriptedReply
from palestra.environment.agents.model_client import Completion, ModelClient, tls_context
from palestra.environment.agents.protocol import ModelEndpoint
from palestra.errors import ContextOverflow, ModelUnavailable

HELLO = [{"role": "user", "content": "hello"}]
FAST = (0.01, 0.01, 0.01)


async def ask(
    base_url: str, *, backoff_s: Sequence[float] = FAST, timeout_s: float = 10, **sampling: Any
) -> Completion:
    endpoint = ModelEndpoint(
        base_url=base_url, model="m", sampling=sampling, timeout_s=timeout_s, api_key="k"
    )
    async with ModelClient(endpoint, tls=tls_context(), backoff_s=backoff_s) as client:
        return await client.complete(HELLO)


async def test_what_is_asked_and_answered() -> None:
    seen: list[Mapping[str, Any]] = []
    async with ScriptedModelServer(["hi"]) as server:
        endpoint = ModelEndpoint(
            base_url=server.base_url, model="m", api_key="k", on_completion=seen.append,
            sampling={"temperature": 0.5, "stream": True, "n": 3, "model": "x", "messages": []},
        )  # fmt: skip
        async with ModelClient(endpoint, tls=tls_context()) as client:
            completion = await client.complete(HELLO, top_p=0.5)
    assert (completion.content, completion.finish_reason) == ("hi", "stop")
    assert completion.message == {"role": "assistant", "content": "hi"}
    expected = {"temperature": 0.5, "top_p": 0.5, "model": "m", "messages": HELLO}
    assert server.requests == [expected]
    assert server.headers[0]["authorization"] == "Bearer k"
    assert seen[0]["object"] == "chat.completion"


async def test_a_busy_server_is_asked_again() -> None:
    for status in (500, 503, 429):
        busy = ScriptedReply(status=status, body={"error": {"message": "busy"}})
        async with ScriptedModelServer([busy, busy, "hi"]) as server:
            assert (await ask(server.base_url)).content == "hi"
        assert len(server.requests) == 3


async def test_a_server_that_stays_broken_is_said_with_its_words() -> None:
    broken = ScriptedReply(status=503, body={"error": {"message": "engine is gone"}})
    async with ScriptedModelServer([broken]) as server:
        with pytest.raises(ModelUnavailable, match="503: engine is gone"):
            await ask(server.base_url)
    assert len(server.requests) == 4


async def test_a_refusal_is_final_and_said_with_its_words() -> None:
    for status, body in (
        (404, {"error": {"message": "no such session"}}),
        (401, {"detail": "no such session"}),
        (400, {"message": "no such session"}),
    ):
        refusal = ScriptedReply(status=status, body=body)
        async with ScriptedModelServer([refusal]) as server:
            with pytest.raises(ModelUnavailable, match=f"{status}: no such session"):
                await ask(server.base_url)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no", "code": "context_length_exceeded"}},
        {"error": {"message": "no", "type": "context_length_exceeded"}},
        {"object": "error", "message": "This model's maximum context length is 10 tokens."},
        {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."},
    ],
)
async def test_a_full_context_is_told_from_other_refusals(body: dict[str, Any]) -> None:
    async with ScriptedModelServer([ScriptedReply(status=400, body=body)]) as server:
        with pytest.raises(ContextOverflow):
            await ask(server.base_url)


@pytest.mark.parametrize(
    "body",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": "x", "tool_calls": [{}]}}]},
        {"choices": [5]},
    ],
)
async def test_nonsense_is_named_as_such(body: dict[str, Any]) -> None:
    async with ScriptedModelServer([ScriptedReply(text="x", body=body)]) as server:
        with pytest.raises(ModelUnavailable, match="no chat completion"):
            await ask(server.base_url)


async def test_no_server_is_tried_again_and_then_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ModelUnavailable, match="cannot be reached") as caught:
            await ask(url)
    assert url in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "http://a b/v1", "http:///v1"])
async def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be"):
        await ask(url)


async def test_a_slow_answer_is_not_asked_for_twice() -> None:
    async with ScriptedModelServer([ScriptedReply(text="x", delay_s=30)]) as server:
        with pytest.raises(ModelUnavailable, match=r"did not answer in 0\.3 s"):
            await ask(server.base_url, timeout_s=0.3)
    assert len(server.requests) == 1
