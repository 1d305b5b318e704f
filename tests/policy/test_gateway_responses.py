from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from gateway_parts import FakeEngine, control, decode, encode, samples, says, tokenizer
from test_gateway import BASH, END, ask, open_session, serving, trace_of, user
from test_gateway_streaming import stream

from palestra.policy.gateway import Gateway, running_gateway
from palestra.policy.rendering import load_renderer

FLAT_BASH = {"type": "function", **BASH["function"]}
CALLED = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'


async def respond(client: httpx.AsyncClient, session: str | None, **body: Any) -> Any:
    path = "/v1/responses" if session is None else f"/s/{session}/v1/responses"
    answer = await client.post(path, json={"model": "policy", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_text_is_a_user_message() -> None:
    engine = FakeEngine(says("hello"))
    async with serving(engine) as client:
        body = await respond(client, None, input="hi", instructions="be kind")
    assert decode(engine.prompts[0]) == (
        f"<|im_start|>system\nbe kind{END}\n<|im_start|>user\nhi{END}\n<|im_start|>assistant\n"
    )
    assert (body["object"], body["status"]) == ("response", "completed")
    (item,) = body["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "hello")
    assert body["usage"]["output_tokens"] == len(engine.sampled[0])


@pytest.mark.parametrize("by_id", [False, True], ids=["items sent again", "by response id"])
async def test_turns_with_tool_calls_are_bridged(by_id: bool) -> None:
    engine = FakeEngine(says(f"Let me look.\n{CALLED}", CALLED, "done"))
    async with serving(engine) as client:
        session = await open_session(client)
        items: list[Any] = [{"role": "user", "content": "go"}]
        earlier = None
        for _ in range(2):
            options = {"previous_response_id": earlier} if earlier else {}
            body = await respond(client, session, input=items, tools=[FLAT_BASH], **options)
            call = body["output"][-1]
            assert (call["type"], json.loads(call["arguments"])) == (
                "function_call",
                {"command": "ls"},
            )
            result = {
                "type": "function_call_output",
                "call_id": call["call_id"],
                "output": [{"type": "input_text", "text": "a.py"}],
            }
            earlier = body["id"] if by_id else None
            items = [result] if by_id else [*items, *body["output"], result]
        options = {"previous_response_id": earlier} if earlier else {}
        await respond(client, session, input=items, tools=[FLAT_BASH], **options)
        trace = await trace_of(client, session)
    assert [turn.parent for turn in trace.turns] == [None, 0, 1]
    assert "<tool_response>\na.py\n</tool_response>" in decode(trace.turns[2].context_ids)


async def test_responses_and_chat_completions_share_a_history() -> None:
    engine = FakeEngine(says("one", "two"))
    async with serving(engine) as client:
        session = await open_session(client)
        await respond(client, session, input="u", tools=[FLAT_BASH])
        history = [user("u"), {"role": "assistant", "content": "one"}, user("v")]
        await ask(client, session, history, tools=[BASH])
        trace = await trace_of(client, session)
    assert [turn.parent for turn in trace.turns] == [None, 0]


async def test_an_answer_that_was_cut_is_incomplete() -> None:
    engine = FakeEngine(says("hello world"))
    async with serving(engine) as client:
        body = await respond(client, None, input="u", max_output_tokens=2, return_token_ids=True)
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][-1]["generation_token_ids"] == engine.sampled[0]
    assert body["output"][-1]["generation_log_probs"] == [-0.25] * 2


async def test_thinking_is_an_item_of_its_own_and_comes_back_as_one() -> None:
    qwen = tokenizer(with_tool_tokens=True)
    thought = qwen.encode("<think>\nhm\n</think>\n\nhello", add_special_tokens=False)
    engine = FakeEngine(samples([*thought, control(END)]))
    gateway = Gateway(engine, load_renderer("qwen3", qwen), qwen, model_name="policy")
    async with (
        running_gateway(gateway) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        session = await open_session(client)
        body = await respond(client, session, input="u")
        kinds = [item["type"] for item in body["output"]]
        again = [{"role": "user", "content": "u"}, *body["output"]]
        await respond(client, session, input=[*again, {"role": "user", "content": "v"}])
        again[1]["content"][0]["text"] = "something else"
        await respond(client, session, input=[*again, {"role": "user", "content": "w"}])
        trace = await trace_of(client, session)
    assert kinds == ["reasoning", "message"]
    assert [turn.parent for turn in trace.turns] == [None, 0, None]


async def test_the_stream_ends_with_the_whole_response() -> None:
    engine = FakeEngine(says(f"Let me look at this.\n{CALLED}"))
    async with serving(engine) as client:
        _, events = await stream(client, "/v1/responses", {"input": "u", "tools": [FLAT_BASH]})
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert [item["type"] for item in events[-1]["response"]["output"]] == [
        "message",
        "function_call",
    ]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "input"),
        ({"input": []}, 422, "input"),
        ({"input": [{"type": "computer_call"}]}, 422, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 422, "input"),
        ({"input": "u", "tools": [{"type": "web_search"}]}, 422, "tools.0.type"),
        ({"input": "u", "tool_choice": "required"}, 400, "tool_choice"),
        ({"input": "u", "background": True}, 400, "background"),
        ({"input": "u", "previous_response_id": "resp_x"}, 400, "previous_response_id"),
    ],
)
async def test_what_is_not_understood_is_named(body: Any, status: int, param: str) -> None:
    async with serving(FakeEngine(says("a"))) as client:
        session = await open_session(client)
        for path in ("/v1/responses", f"/s/{session}/v1/responses"):
            answer = await client.post(path, json=body)
            assert answer.status_code == status
            assert answer.json()["error"]["param"].startswith(param), answer.text


async def test_what_shall_not_be_stored_is_not_known_later() -> None:
    async with serving(FakeEngine(says("a"))) as client:
        session = await open_session(client)
        body = await respond(client, session, input="u", store=False)
        later = {"input": "v", "previous_response_id": body["id"]}
        answer = await client.post(f"/s/{session}/v1/responses", json=later)
    assert answer.status_code == 400


async def test_an_overflow_is_the_same_error_as_in_chat() -> None:
    async with serving(FakeEngine(says("a"), max_context=50)) as client:
        answer = await client.post("/v1/responses", json={"input": "x" * 60})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_text_split_inside_a_character_is_whole_again() -> None:
    engine = FakeEngine(samples([*encode("a🙂"), control(END)]))
    async with serving(engine) as client:
        body = await respond(client, None, input="u")
    assert body["output"][0]["content"][0]["text"] == "a🙂"
