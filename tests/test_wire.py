from __future__ import annotations

import orjson
import pytest
from pydantic import ValidationError

from palestra.records import (
    EpisodeResult,
    FinishReason,
    Message,
    Outcome,
    Segment,
    TestSplit,
    Timings,
    ToolCall,
    Trace,
    Turn,
    Verdict,
)
from palestra.wire import (
    RunRequest,
    episode_from_wire,
    episode_to_wire,
    eval_report,
    message_from_wire,
    message_to_wire,
    timings_to_wire,
    trace_from_wire,
    trace_to_wire,
)

VERDICT = Verdict(
    resolved=True,
    patch_applied=True,
    fail_to_pass=TestSplit(success=("t::a",), failure=()),
    pass_to_pass=TestSplit(success=(), failure=("t::b",)),
    statuses={"t::a": "PASSED"},
    log="…",
    duration_s=1.5,
)


def test_an_episode_survives_the_wire() -> None:
    episode = EpisodeResult(
        episode_id="e",
        instance_id="Some__Task-1",
        outcome=Outcome.SOLVED,
        exit_status="Submitted",
        messages=(
            Message(role="user", content="fix"),
            Message(
                role="assistant",
                content="",
                tool_calls=(ToolCall(id="1", name="bash", arguments='{"command": "ls"}'),),
            ),
        ),
        patch="diff",
        submission=None,
        verdict=VERDICT,
        error=None,
        num_turns=1,
        num_tool_calls=1,
        timings=Timings(agent_s=2.0),
    )
    wire = orjson.loads(orjson.dumps(episode_to_wire(episode)))
    assert episode_from_wire(wire) == episode
    assert timings_to_wire(episode.timings) == {"agent_s": 2.0}


def test_a_trace_survives_the_wire_bit_for_bit() -> None:
    trace = Trace(
        session_id="s",
        turns=(
            Turn(
                index=0,
                parent=None,
                context_ids=(1, 2),
                segments=(
                    Segment(ids=(3, 4), logprobs=(-0.1234567890123456, -1e-12), policy_version=7),
                ),
                finish_reason=FinishReason.LENGTH,
                temperature=0.7,
                duration_s=0.25,
            ),
        ),
    )
    assert trace_from_wire(orjson.loads(orjson.dumps(trace_to_wire(trace)))) == trace


def test_messages_of_openai_clients_are_read() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}
    assert message_from_wire(parts).content == "ab"
    call = Message(
        role="assistant", content="", tool_calls=(ToolCall(id="x", name="bash", arguments="{}"),)
    )
    assert message_from_wire(message_to_wire(call)) == call


def test_a_request_carries_the_row_at_top_level() -> None:
    body = {
        "instance_id": "a__b-1",
        "FAIL_TO_PASS": ["t"],
        "subset": "verified",
        "sglang_url": "http://127.0.0.1:1/v1",
        "sampling_params": {"max_new_tokens": 5, "spaces_between_special_tokens": False},
    }
    request = RunRequest.model_validate(body)
    assert request.row() == {
        "instance_id": "a__b-1",
        "FAIL_TO_PASS": ["t"],
        "subset": "verified",
        "split": "train",
    }
    with pytest.raises(ValidationError, match="max_new_tokens"):
        RunRequest.model_validate(body | {"sampling_params": {"max_new_tokens": 0}})


def test_the_report_has_the_shape_of_the_harness() -> None:
    report = eval_report("Some__Task-1", VERDICT)["eval_report"]["some__task-1"]
    assert report["resolved"] is True
    assert report["tests_status"]["PASS_TO_PASS"] == {"success": [], "failure": ["t::b"]}
