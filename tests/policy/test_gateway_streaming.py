from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from gateway_parts import FakeEngine, control, encode, samples, says, until
from test_gateway import BASH, END, ask, message_of, open_session, serving, trace_of, user

from palestra.errors import EngineError


async def stream(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> tuple[httpx.Response, list[Any]]:
    """The events of a stream; ``"[DONE]"`` is the last of a chat completion's."""
    async with client.stream("POST", path, json={**body, "stream": True}) as answer:
        lines = [line async for line in answer.aiter_lines()]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return answer, [part if part == "[DONE]" else json.loads(part) for part in data]


async def test_a_stream_says_what_a_whole_answer_says() -> None:
    text = "hello wörld 🙂 " * 20
    engine = FakeEngine(says(text))
    async with serving(engine) as client:
        session = await open_session(client)
        body = {"messages": [user("u")], "stream_options": {"include_usage": True}}
        answer, events = await stream(client, f"/s/{session}/v1/chat/completions", body)
        trace = await trace_of(client, session)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == text
    assert len(deltas) > 3
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + [
        "stop"
    ]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in events[:-1]}) == 1
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(engine.sampled[0])
    assert [list(turn.sampled_ids) for turn in trace.turns] == engine.sampled


async def test_a_stream_holds_tool_calls_logprobs_and_ids_on_request() -> None:
    called = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
    engine = FakeEngine(says(called))
    body = {
        "messages": [user("u")],
        "tools": [BASH],
        "logprobs": True,
        "return_token_ids": True,
    }
    async with serving(engine) as client:
        _, events = await stream(client, "/v1/chat/completions", body)
    *_, calls, last, _ = events
    (call,) = calls["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["function"]["name"]) == (0, "bash")
    assert json.loads(call["function"]["arguments"]) == {"command": "ls"}
    choice = last["choices"][0]
    assert (choice["finish_reason"], choice["token_ids"]) == ("tool_calls", engine.sampled[0])
    assert last["prompt_token_ids"] == engine.prompts[0]
    assert len(choice["logprobs"]["content"]) == len(engine.sampled[0])


async def test_a_stream_that_cannot_begin_is_refused_as_any_request() -> None:
    async with serving(FakeEngine(says("a"), max_context=50)) as client:
        answer, _ = await stream(client, "/v1/chat/completions", {"messages": [user("x" * 60)]})
    assert answer.status_code == 400
    assert not answer.headers["content-type"].startswith("text/event-stream")


async def test_a_slow_stream_is_kept_open_and_says_its_failure() -> None:
    engine = FakeEngine(says("late"), gate=True)
    assert engine.gate is not None
    async with serving(engine, quiet_s=0.05) as client:
        post = client.stream(
            "POST", "/v1/chat/completions", json={"messages": [user("u")], "stream": True}
        )
        async with post as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith(":"), "a comment, while it samples"
            engine.gate.set()
            rest = [line async for line in lines]
        assert "late" in "".join(rest)
        assert rest[-2] == "data: [DONE]"
    engine = FakeEngine(says("late"), gate=True)
    async with serving(engine, quiet_s=0.05, generate_timeout_s=0.3) as client:
        _, events = await stream(client, "/v1/chat/completions", {"messages": [user("u")]})
    (failure,) = events
    assert failure["error"]["type"] == EngineError.__name__


@pytest.mark.parametrize("quiet_s", [0.05, 30.0], ids=["begun", "not begun"])
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_a_client_that_leaves_a_stream_cancels_its_sampling(
    path: str, quiet_s: float
) -> None:
    engine = FakeEngine(says("a"), gate=True)
    async with serving(engine, quiet_s=quiet_s) as client:
        session = await open_session(client)
        body = {"messages": [user("u")], "input": "u", "stream": True}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await client.post(f"/s/{session}/v1/{path}", json=body)
        await until(lambda: engine.cancelled == 1)
        assert (await trace_of(client, session)).turns == ()


async def test_two_turns_streamed_are_one_path() -> None:
    engine = FakeEngine(samples([*encode("a"), *encode("b"), control(END)]))
    async with serving(engine) as client:
        session = await open_session(client)
        path = f"/s/{session}/v1/chat/completions"
        await stream(client, path, {"messages": [user("u")]})
        history = [user("u"), {"role": "assistant", "content": "ab"}, user("v")]
        message_of(await ask(client, session, history))
        trace = await trace_of(client, session)
    assert [turn.parent for turn in trace.turns] == [None, 0]
