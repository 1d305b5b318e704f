"""The options of ``palestra eval`` that reach the agent, as a user types them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from palestra.environment.agents.fake_model import ScriptedModelServer, ScriptedReply, block

TASKS = "katas:train?seed=0&n=1"


async def evaluate(*options: str, state: Path) -> tuple[int, str, str]:
    """Run ``palestra eval`` in a folder as sandbox (no isolation: the commands are ours)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "palestra", "eval", TASKS, "--sandbox", "local", *options),
        env={**os.environ, "PALESTRA_STATE": str(state)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


async def episode(
    model: ScriptedModelServer, *options: str, state: Path, prompt: str = "kata"
) -> dict[str, Any]:
    wanted = ("--base-url", model.base_url, "--model", "scripted", "--prompt", prompt, "--json")
    code, out, err = await evaluate(*wanted, *options, state=state)
    assert code == 0, err
    report = orjson.loads(out)
    assert len(report["episodes"]) == 1
    return dict(report["episodes"][0])


@pytest.mark.parametrize(
    ("options", "turns", "status"),
    [
        (["--step-limit", "2"], 2, "LimitsExceeded"),
        (["--token-limit", "3"], 3, "RolloutTruncated"),
        (["--collapse-limit", "4"], 4, "CollapseContinued"),
        (["--set", "agent.collapse_limit=5"], 5, "CollapseContinued"),
    ],
    ids=["steps", "tokens", "collapse", "set"],
)
async def test_limits(options: list[str], turns: int, status: str, tmp_path: Path) -> None:
    async with ScriptedModelServer([block("true")]) as model:
        ended = await episode(model, *options, state=tmp_path)
    assert (ended["num_turns"], ended["exit_status"], ended["outcome"]) == (
        turns,
        status,
        "truncated",
    )


async def test_format_errors_and_tool_calls(tmp_path: Path) -> None:
    async with ScriptedModelServer(["words only"]) as model:
        options = ("--max-format-errors", "4")
        ended = await episode(model, *options, state=tmp_path, prompt="swebench")
    assert (ended["num_turns"], ended["outcome"]) == (4, "malformed")
    assert model.requests[0]["tools"][0]["function"]["name"] == "bash"


async def test_the_agents_time_and_sampling(tmp_path: Path) -> None:
    async with ScriptedModelServer([ScriptedReply(text=block("true"), delay_s=60)]) as model:
        options = ("--agent-timeout", "1", "--temperature", "0", "--max-tokens", "77")
        ended = await episode(model, *options, state=tmp_path)
    assert (ended["exit_status"], ended["outcome"]) == ("LimitsExceeded", "truncated")
    assert (model.requests[0]["temperature"], model.requests[0]["max_tokens"]) == (0, 77)


async def test_a_recipe_gives_what_no_option_says(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        '[agent]\nname = "mini"\nprompt = "kata"\nstep_limit = 5\nmax_format_errors = 2\n'
        "[sampling]\ntemperature = 0.5\nmax_new_tokens = 99\n"
    )
    async with ScriptedModelServer([block("true")]) as model:
        options = ("--recipe", str(recipe), "--step-limit", "3")
        ended = await episode(model, *options, state=tmp_path / "state")
    assert ended["num_turns"] == 3
    assert (model.requests[0]["temperature"], model.requests[0]["max_tokens"]) == (0.5, 99)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "agent.step_limt=3"], "did you mean step_limit"),
        (["--recipe", "no-such-recipe"], "there is no recipe no-such-recipe"),
        (["--agent", "mini"], "--base-url"),
    ],
    ids=["unknown key", "no recipe", "no model"],
)
async def test_what_cannot_be_meant_is_one_line(
    options: list[str], says: str, tmp_path: Path
) -> None:
    code, _, err = await evaluate(*options, state=tmp_path)
    assert code != 0
    assert says in err, err
    assert "Traceback" not in err
