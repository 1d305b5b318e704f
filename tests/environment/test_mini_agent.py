"""mini-swe-agent's real loop against a scripted model on a real port."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from agent_toys import FIX, SUBMIT, endpoint, make_task, mini, toy_spec, until

from palestra.environment.agents.fake_model import ScriptedModelServer, ScriptedReply, block
from palestra.environment.agents.mini import MiniAgent
from palestra.environment.agents.protocol import AgentExit, AgentResult, ModelEndpoint
from palestra.environment.sandboxes.fake import FakeSandbox, FakeSandboxBackend
from palestra.environment.sandboxes.protocol import CommandResult
from palestra.errors import ModelUnavailable, SandboxDied


async def play(
    agent: MiniAgent, *replies: str | ScriptedReply
) -> tuple[AgentResult, ScriptedModelServer]:
    task = make_task()
    async with (
        ScriptedModelServer(replies) as model,
        FakeSandboxBackend().start(toy_spec(task)) as sandbox,
    ):
        return await agent.run(task, sandbox, endpoint(model.base_url)), model


async def test_it_reads_edits_and_submits() -> None:
    result, model = await play(mini(), block("cat calc.py"), block(FIX), block(SUBMIT))
    assert result.exit is AgentExit.SUBMITTED
    assert (result.num_turns, result.num_tool_calls) == (3, 3)
    assert result.submission == ""
    assert [m.role for m in result.messages] == ["system", *["user", "assistant"] * 3]
    assert "return a - b" in result.messages[3].content
    assert result.messages[-1].content == block(SUBMIT)
    assert result.model_s is not None
    assert result.env_s is not None
    assert 0 < result.env_s < 10
    assert model.requests[0]["messages"][1]["content"].startswith("add(1, 2) is -1")


async def test_every_prompt_extends_the_one_before() -> None:
    # Also after a malformed answer: the gateway could not bridge a rewritten history.
    _, model = await play(mini(), "no block", block("true"), block("a") + block("b"), block(SUBMIT))
    assert len(model.requests) == 4
    for before, after in zip(model.requests, model.requests[1:], strict=False):
        assert after["messages"][: len(before["messages"])] == before["messages"]
    assert model.requests[1]["messages"][2] == {"role": "assistant", "content": "no block"}
    assert "exactly one" in model.requests[1]["messages"][3]["content"]


async def test_the_submission_is_what_follows_the_first_line() -> None:
    result, _ = await play(mini(), block(f"{SUBMIT} && echo one && echo two"))
    assert result.submission == "one\ntwo\n"


@pytest.mark.parametrize(
    "command", [f"{SUBMIT}; false", f"echo first; {SUBMIT}"], ids=["failing", "not first"]
)
async def test_what_looks_like_a_submission_is_none(command: str) -> None:
    result, _ = await play(mini(), block(command), block(SUBMIT))
    assert (result.exit, result.num_turns) == (AgentExit.SUBMITTED, 2)


async def test_the_step_limit_ends_it() -> None:
    result, _ = await play(mini(step_limit=3), block("true"))
    assert (result.exit, result.num_turns) == (AgentExit.STEP_LIMIT, 3)
    assert result.submission is None


async def test_the_token_limit_ends_it_before_the_next_query() -> None:
    # Each answer of the scripted server says that it has one token.
    result, model = await play(mini(token_limit=3), block("true"), "no block", block("true"))
    assert (result.exit, result.num_turns, len(model.requests)) == (AgentExit.TOKEN_LIMIT, 3, 3)
    assert [m.role for m in result.messages] == ["system", *["user", "assistant"] * 3, "user"]


async def test_a_token_limit_needs_a_policy_that_counts() -> None:
    silent = ScriptedReply(text=block("true"), body={"usage": None})
    with pytest.raises(ModelUnavailable, match="do not say how many tokens"):
        await play(mini(token_limit=3), silent)
    result, _ = await play(mini(), silent, block(SUBMIT))
    assert result.exit is AgentExit.SUBMITTED


async def test_format_errors_in_a_row_end_it_and_its_answers_are_kept() -> None:
    result, _ = await play(mini(max_format_errors=2), "x", block("true"), "y", "z")
    assert (result.exit, result.num_turns, result.num_tool_calls) == (AgentExit.MALFORMED, 4, 1)
    said = [m.content for m in result.messages if m.role == "assistant"]
    assert said == ["x", block("true"), "y", "z"]


async def test_a_cut_answer_is_told_so() -> None:
    cut = ScriptedReply(text="thinking and thinking", finish_reason="length")
    _, model = await play(mini(), cut, block(SUBMIT))
    assert "cut off" in model.requests[1]["messages"][-1]["content"]


async def test_the_same_command_over_and_over_ends_it() -> None:
    replies = [block("ls"), block("pwd"), block("ls")]
    result, _ = await play(mini(collapse_limit=3), *replies)
    assert (result.exit, result.num_turns, result.num_tool_calls) == (AgentExit.COLLAPSED, 5, 4)


async def test_a_full_context_ends_it_with_what_was_done() -> None:
    full = ScriptedReply(
        status=400, body={"error": {"message": "too long", "code": "context_length_exceeded"}}
    )
    result, _ = await play(mini(), block("true"), full)
    assert (result.exit, result.num_turns) == (AgentExit.TOKEN_LIMIT, 1)
    assert [m.role for m in result.messages] == ["system", "user", "assistant", "user"]


async def test_the_time_limit_ends_a_slow_command_and_a_slow_model() -> None:
    for reply in (block("sleep 60"), ScriptedReply(text=block("true"), delay_s=60)):
        began = time.monotonic()
        result, model = await play(mini(time_limit_s=0.5), block("true"), reply)
        assert result.exit is AgentExit.TIME_LIMIT
        assert len(result.messages) >= 4
        assert time.monotonic() - began < 15
        assert model.num_waiting == 0


async def test_a_command_that_times_out_is_told_and_the_agent_goes_on() -> None:
    _, model = await play(mini(step_timeout_s=0.3), block("echo a; sleep 60"), block(SUBMIT))
    told = model.requests[1]["messages"][-1]["content"]
    assert "timed out after 0.3 seconds" in told
    assert "exit code -1\na" in told


async def test_long_output_is_cut_in_the_middle() -> None:
    _, model = await play(mini(), block("seq 100000"), block(SUBMIT))
    told = model.requests[1]["messages"][-1]["content"]
    assert len(told) < 5000
    assert told.rstrip().endswith("99999\n100000")


async def test_what_bash_cannot_take_is_told() -> None:
    _, model = await play(mini(), block("echo \0"), block(SUBMIT))
    assert "embedded null byte" in model.requests[1]["messages"][-1]["content"]


async def test_ten_thousand_newlines_do_not_stop_the_clock() -> None:
    began = time.monotonic()
    await play(mini(), "```mswea_bash_command" + "\n" * 200_000 + "x", block(SUBMIT))
    assert time.monotonic() - began < 10


async def test_cancelling_ends_the_thread_in_a_command_and_in_a_query() -> None:
    for reply in (block("sleep 60"), ScriptedReply(text=block("true"), delay_s=60)):
        task = make_task()
        backend = FakeSandboxBackend()
        async with (
            ScriptedModelServer([block("true"), reply]) as model,
            backend.start(toy_spec(task)) as sandbox,
        ):
            running = asyncio.create_task(mini().run(task, sandbox, endpoint(model.base_url)))
            await until(lambda model=model: len(model.requests) == 2, what="two queries")
            await asyncio.sleep(0.1)
            began = time.monotonic()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert time.monotonic() - began < 5
            name = f"mini-{sandbox.sandbox_id}"
            await until(
                lambda name=name: name not in {t.name for t in threading.enumerate()},
                what="the thread ends",
            )


async def test_a_sandbox_that_dies_is_no_fault_of_the_agent() -> None:
    task = make_task()
    async with (
        ScriptedModelServer([block("sleep 60")]) as model,
        FakeSandboxBackend().start(toy_spec(task)) as sandbox,
    ):
        assert isinstance(sandbox, FakeSandbox)
        running = asyncio.create_task(mini().run(task, sandbox, endpoint(model.base_url)))
        await until(lambda: bool(model.requests), what="a query")
        await asyncio.sleep(0.3)
        sandbox.kill()
        with pytest.raises(SandboxDied):
            await running


async def test_without_an_endpoint_it_says_so() -> None:
    async with FakeSandboxBackend().start(toy_spec(make_task())) as sandbox:
        with pytest.raises(ModelUnavailable, match="no policy endpoint"):
            await mini().run(make_task(), sandbox, None)


# --- tool calls -----------------------------------------------------------------


async def test_tool_calls_run_and_are_answered() -> None:
    agent = mini(prompt="swebench")
    first = ScriptedReply(commands=("cat calc.py", "pwd"), finish_reason="tool_calls")
    last = ScriptedReply(text="done", commands=(SUBMIT,), finish_reason="tool_calls")
    result, model = await play(agent, first, last)
    assert result.exit is AgentExit.SUBMITTED
    assert (result.num_turns, result.num_tool_calls) == (2, 3)
    roles = [m.role for m in result.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert "return a - b" in result.messages[3].content
    assert result.messages[3].tool_call_id == result.messages[2].tool_calls[0].id
    assert result.messages[2].tool_calls[0].name == "bash"
    assert model.requests[0]["tools"][0]["function"]["name"] == "bash"
    assert (
        model.requests[1]["messages"][2]["tool_calls"][0]["id"] == result.messages[3].tool_call_id
    )


async def test_malformed_tool_calls_are_answered_call_by_call() -> None:
    def call(arguments: str) -> ScriptedReply:
        function = {"name": "bash", "arguments": arguments}
        wire = [{"id": "c1", "type": "function", "function": function}]
        return ScriptedReply(choice={"message": {"role": "assistant", "tool_calls": wire}})

    bad = [call("{"), call('{"command": 5}'), call('{"cmd": "ls"}')]
    agent = mini(prompt="swebench", max_format_errors=9)
    result, model = await play(agent, *bad, "no call", ScriptedReply(commands=(SUBMIT,)))
    assert (result.exit, result.num_turns, result.num_tool_calls) == (AgentExit.SUBMITTED, 5, 1)
    answers = [m for m in model.requests[-1]["messages"] if m["role"] == "tool"]
    assert [a["tool_call_id"] for a in answers] == ["c1"] * 3
    assert "Error parsing" in answers[0]["content"]
    assert "no string" in answers[1]["content"]
    assert "Missing 'command'" in answers[2]["content"]
    assert model.requests[-1]["messages"][-1]["role"] == "user"


# --- prompt sets ----------------------------------------------------------------


async def test_the_default_set_is_minis_own_for_text_blocks() -> None:
    agent = mini(prompt="swebench_backticks")
    assert agent.env["PAGER"] == "cat"
    result, model = await play(agent, "no block", block("false"), block(SUBMIT))
    system, user, _, complaint = model.requests[1]["messages"]
    assert "Your response must contain exactly ONE bash code block" in system["content"]
    assert "add(1, 2) is -1" in user["content"]
    assert "found 0 actions" in complaint["content"]
    assert "<returncode>1</returncode>" in result.messages[-2].content
    assert "tools" not in model.requests[0]


async def test_a_set_of_ones_own_with_another_interpreter(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "agent:\n  system_template: be brief\n  instance_template: '{{task}} in {{cwd}}'\n"
        "environment:\n  interpreter: [python3, -c]\n  env: {A: b}\n"
        "model:\n  model_class: textbased\n  model_kwargs: {top_k: 5, drop_params: true}\n"
    )
    agent = mini(prompt=str(own))
    assert dict(agent.env) == {"A": "b"}
    result, model = await play(
        agent, block("print(6 * 7)"), block("print('COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT')")
    )
    assert "42" in result.messages[3].content
    assert model.requests[0]["top_k"] == 5
    assert "drop_params" not in model.requests[0]


def test_the_kata_set_is_short() -> None:
    agent = mini(prompt="kata")
    prompts = agent._prompts
    words = (prompts.system_template + " " + prompts.instance_template).split()
    assert len(words) <= 120


# --- threads --------------------------------------------------------------------


async def test_many_at_once_do_not_share_a_pool() -> None:
    # More episodes than any default executor has threads, all waiting at once.
    num = 48
    arrived = asyncio.Event()
    waiting = 0
    task = make_task()

    class Meeting:
        sandbox_id = "meeting"
        workdir = "/"

        async def run(self, command: str, *, timeout_s: float, output_limit_bytes: int = 0):  # type: ignore[no-untyped-def]
            nonlocal waiting
            waiting += 1
            if waiting == num:
                arrived.set()
            await asyncio.wait_for(arrived.wait(), 20)
            return CommandResult(output=SUBMIT.removeprefix("echo "), exit_code=0)

    async with ScriptedModelServer([block("meet")]) as model:
        agent = mini()
        runs = [
            agent.run(task, Meeting(), ModelEndpoint(base_url=model.base_url, model="m"))  # type: ignore[arg-type]
            for _ in range(num)
        ]
        results = await asyncio.gather(*runs)
    assert {r.exit for r in results} == {AgentExit.SUBMITTED}
