"""Other people's clients, unchanged: the openai package, mini-swe-agent's litellm, plain HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_parts import FakeEngine, control, encode, samples, says, tokenizer
from test_gateway import BASH, END, open_session, trace_of

from palestra.policy.gateway import Gateway, running_gateway
from palestra.policy.rendering import load_renderer
from palestra.records import Trace

needs_openai = pytest.mark.skipif(find_spec("openai") is None, reason="openai is not installed")
needs_litellm = pytest.mark.skipif(find_spec("litellm") is None, reason="litellm is not installed")
needs_mcp = pytest.mark.skipif(
    find_spec("mcp") is None, reason="mcp is not installed: litellm sends no tools without it"
)
RUN_MINI = Path(__file__).parent / "clients" / "run_mini_swe_agent.py"
CALLED = '<tool_call>\n{"name": "bash", "arguments": {"command": "COMMAND"}}\n</tool_call>'
FENCED = "THOUGHT: go on\n\n```mswea_bash_command\nCOMMAND\n```"
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


@asynccontextmanager
async def session(engine: FakeEngine) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client of the gateway's own interface, and the id of an open session."""
    gateway = Gateway(
        engine, load_renderer("chatml", tokenizer()), tokenizer(), model_name="policy"
    )
    async with (
        running_gateway(gateway) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        yield client, await open_session(client)


def url_of(client: httpx.AsyncClient, session_id: str) -> str:
    return f"{str(client.base_url).rstrip('/')}/s/{session_id}/v1"


def openai_client(client: httpx.AsyncClient, session_id: str, **options: Any) -> Any:
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=url_of(client, session_id), api_key="none", **options)


def assert_exact(trace: Trace, engine: FakeEngine, *, num_turns: int) -> None:
    assert [turn.parent for turn in trace.turns] == [None, *range(num_turns - 1)]
    assert [list(turn.sampled_ids) for turn in trace.turns] == engine.sampled
    assert [list(trace.prompt_ids(turn)) for turn in trace.turns] == engine.prompts


@needs_openai
async def test_openai_chat_with_and_without_a_stream() -> None:
    odd = [*encode("a"), *encode("b"), *encode("🙂"), control(END)]
    engine = FakeEngine(samples(odd))
    async with session(engine) as (client, session_id):
        async with openai_client(client, session_id) as openai:
            assert [model.id async for model in await openai.models.list()] == ["policy"]
            messages: list[Any] = [{"role": "user", "content": "u"}]
            whole = await openai.chat.completions.create(
                model="policy", messages=messages, logprobs=True, seed=3
            )
            assert whole.choices[0].message.content == "ab🙂"
            assert [entry.logprob for entry in whole.choices[0].logprobs.content] == [-0.25] * len(
                odd
            )
            messages += [whole.choices[0].message, {"role": "user", "content": "v"}]
            stream = await openai.chat.completions.create(
                model="policy",
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
        trace = await trace_of(client, session_id)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "ab🙂"
    assert chunks[-1].usage.completion_tokens == len(odd)
    assert_exact(trace, engine, num_turns=2)


@needs_openai
async def test_openai_collects_tool_calls_from_a_stream() -> None:
    engine = FakeEngine(says(f"Look.\n{CALLED}", "done"))
    # The package collects calls of strict tools only.
    tool = {"type": "function", "function": {**BASH["function"], "strict": True}}
    async with session(engine) as (client, session_id):
        async with openai_client(client, session_id) as openai:
            messages: list[Any] = [{"role": "user", "content": "u"}]
            async with openai.chat.completions.stream(
                model="policy", messages=messages, tools=[tool]
            ) as stream:
                async for _ in stream:
                    pass
                final = (await stream.get_final_completion()).choices[0]
            assert final.finish_reason == "tool_calls"
            (call,) = final.message.tool_calls
            messages += [
                final.message.to_dict(),
                {"role": "tool", "tool_call_id": call.id, "content": "a.py"},
            ]
            await openai.chat.completions.create(model="policy", messages=messages, tools=[tool])
        trace = await trace_of(client, session_id)
    assert_exact(trace, engine, num_turns=2)


@needs_openai
async def test_openai_responses_with_and_without_a_stream() -> None:
    engine = FakeEngine(says(f"Look.\n{CALLED}", "done"))
    tool = {"type": "function", **BASH["function"], "strict": None}
    async with session(engine) as (client, session_id):
        async with openai_client(client, session_id) as openai:
            first = await openai.responses.create(model="policy", input="u", tools=[tool])
            assert first.output_text == "Look."
            call = first.output[-1]
            result = {"type": "function_call_output", "call_id": call.call_id, "output": "a.py"}
            async with openai.responses.stream(
                model="policy", previous_response_id=first.id, input=[result], tools=[tool]
            ) as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_response()
        trace = await trace_of(client, session_id)
    assert (final.output_text, final.status) == ("done", "completed")
    assert kinds[-1] == "response.completed"
    assert_exact(trace, engine, num_turns=2)


@needs_openai
async def test_openai_takes_an_overflow_as_one_and_its_retries_are_one_turn() -> None:
    from openai import BadRequestError

    engine = FakeEngine(says("fine"), max_context=80, gate=True)
    assert engine.gate is not None
    async with session(engine) as (client, session_id):
        async with openai_client(client, session_id, timeout=0.5, max_retries=3) as openai:
            asked = asyncio.create_task(
                openai.chat.completions.create(
                    model="policy", messages=[{"role": "user", "content": "u"}]
                )
            )
            await asyncio.sleep(0.8)  # its first try is given up
            engine.gate.set()
            assert (await asked).choices[0].message.content == "fine"
            long = [{"role": "user", "content": "x" * 99}]
            with pytest.raises(BadRequestError) as refused:
                await openai.chat.completions.create(model="policy", messages=long)
            assert refused.value.code == "context_length_exceeded"
        trace = await trace_of(client, session_id)
    assert len(trace.turns) == 1
    assert engine.cancelled >= 1


@pytest.mark.slow
@needs_litellm
@pytest.mark.parametrize(
    ("model_class", "written"),
    [
        pytest.param("litellm", CALLED, marks=needs_mcp, id="tools"),
        pytest.param("litellm_textbased", FENCED, id="text"),
        pytest.param(
            "minisweagent.models.litellm_response_model.LitellmResponseModel",
            f"I run it.\n{CALLED}",
            marks=needs_mcp,
            id="responses",
        ),
    ],
)
async def test_mini_swe_agent_with_its_own_client(model_class: str, written: str) -> None:
    replies = [written.replace("COMMAND", command) for command in ("echo hi", "ls /", SUBMIT)]
    engine = FakeEngine(says(*replies), max_context=32_768)
    async with session(engine) as (client, session_id):
        ended = await run_mini(url_of(client, session_id), model_class)
        trace = await trace_of(client, session_id)
    assert ended == {"exit_status": "Submitted", "why": None, "calls": 3}
    assert_exact(trace, engine, num_turns=3)


@pytest.mark.slow
@needs_litellm
async def test_mini_swe_agent_knows_an_overflow_and_does_not_ask_again() -> None:
    engine = FakeEngine(says("never"), max_context=100)
    async with session(engine) as (client, session_id):
        ended = await run_mini(url_of(client, session_id), "litellm_textbased")
    assert ended["exit_status"] == "ContextWindowExceededError"
    assert engine.prompts == []


async def run_mini(base_url: str, model_class: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(RUN_MINI),
        base_url,
        model_class,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 100)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-2000:]
    return json.loads(out.decode().strip().splitlines()[-1])
