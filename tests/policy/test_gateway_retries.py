from __future__ import annotations

import asyncio
from typing import Any

import httpx
from gateway_parts import FakeEngine, says, until
from test_gateway import message_of, open_session, serving, trace_of, user


async def ask(client: httpx.AsyncClient, session: str, text: str, **headers: str) -> Any:
    body = {"messages": [user(text)], "return_token_ids": True}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(f"/s/{session}/v1/chat/completions", json=body, headers=names)


async def test_a_retry_gets_the_answer_that_there_is() -> None:
    engine = FakeEngine(says("one", "two", "three"))
    async with serving(engine) as client:
        session = await open_session(client)
        first = await ask(client, session, "u", x_stainless_retry_count="0")
        again = await ask(client, session, "u", x_stainless_retry_count="1")
        anew = await ask(client, session, "u", x_stainless_retry_count="0")
        other = await ask(client, session, "v", x_stainless_retry_count="2")
        trace = await trace_of(client, session)
    texts = [message_of(answer)["content"] for answer in (first, again, anew, other)]
    assert texts == ["one", "one", "two", "three"]
    for field in ("prompt_token_ids", "usage"):
        assert first.json()[field] == again.json()[field]
    assert first.json()["choices"] == again.json()["choices"]
    assert len(trace.turns) == 3


async def test_an_idempotency_key_is_answered_once_and_for_its_request_only() -> None:
    engine = FakeEngine(says("one", "two", "three"))
    async with serving(engine) as client:
        session = await open_session(client)
        asked = [("u", "k"), ("u", "k"), ("u", "other"), ("v", "k")]
        texts = [
            message_of(await ask(client, session, text, idempotency_key=key))["content"]
            for text, key in asked
        ]
    assert texts == ["one", "one", "two", "three"]


async def test_a_retry_waits_for_the_request_in_flight() -> None:
    engine = FakeEngine(says("one", "two"), gate=True)
    async with serving(engine) as client:
        session = await open_session(client)
        first = asyncio.create_task(ask(client, session, "u", x_stainless_retry_count="0"))
        await until(lambda: len(engine.prompts) == 1)
        again = asyncio.create_task(ask(client, session, "u", x_stainless_retry_count="1"))
        await asyncio.sleep(0.1)
        assert engine.gate is not None
        engine.gate.set()
        texts = [message_of(answer)["content"] for answer in await asyncio.gather(first, again)]
        trace = await trace_of(client, session)
    assert texts == ["one", "one"]
    assert len(trace.turns) == len(engine.sampled) == 1


async def test_a_retry_of_a_request_whose_client_left_is_sampled() -> None:
    engine = FakeEngine(says("one"), gate=True)
    async with serving(engine) as client:
        session = await open_session(client)
        first = asyncio.create_task(ask(client, session, "u", idempotency_key="k"))
        await until(lambda: len(engine.prompts) == 1)
        again = asyncio.create_task(ask(client, session, "u", idempotency_key="k"))
        await asyncio.sleep(0.1)
        first.cancel()
        await until(lambda: len(engine.prompts) == 2)
        assert engine.gate is not None
        engine.gate.set()
        assert message_of(await again)["content"] == "one"
        trace = await trace_of(client, session)
    assert (engine.cancelled, len(trace.turns)) == (1, 1)


async def test_a_retry_of_a_request_that_failed_is_sampled() -> None:
    engine = FakeEngine(says("one"))
    async with serving(engine) as client:
        session = await open_session(client)
        engine.failure = RuntimeError("once")
        assert (await ask(client, session, "u", idempotency_key="k")).status_code == 503
        engine.failure = None
        assert message_of(await ask(client, session, "u", idempotency_key="k"))
