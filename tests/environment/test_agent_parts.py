"""Prompt sets, the bridge, and what importing mini-swe-agent leaves behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from agent_toys import until

from palestra.config import AgentSection
from palestra.environment.agents.bridge import LoopBridge, run_in_thread
from palestra.environment.agents.choose import make_agent
from palestra.environment.agents.prompt_set import load_prompt_set
from palestra.errors import ConfigError

GOOD = "agent: {system_template: s, instance_template: '{{task}}'}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "valid dictionary"),
        ("- 1\n", "valid dictionary"),
        ("agent: [\n", "is no YAML"),
        ("agent: {system_template: s}\n", "agent.instance_template: Field required"),
        ("agent: {system_template: '{{', instance_template: i}\n", "agent.system_template"),
        (GOOD + "model: {action_regex: '('}\n", "model.action_regex: is no regular expression"),
        (GOOD + "model: {observation_template: '{% if %}'}\n", "model.observation_template"),
        (GOOD + "environment: {env: {A: [1]}}\n", "environment.env.A"),
    ],
)
def test_a_malformed_prompt_file_names_file_and_field(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prompt_set(str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_prompt_set_names_the_known_ones(tmp_path: Path) -> None:
    for name in ("swebench_backtick", str(tmp_path / "none.yaml"), ""):
        with pytest.raises(ConfigError) as caught:
            load_prompt_set(name)
        if name:
            assert "swebench_backticks" in str(caught.value)


def test_text_and_tool_sets_are_told_apart(tmp_path: Path) -> None:
    assert not load_prompt_set("swebench_backticks").uses_tools
    assert not load_prompt_set("kata").uses_tools
    assert load_prompt_set("swebench").uses_tools
    own = tmp_path / "own.yaml"
    own.write_text(GOOD)
    assert load_prompt_set(str(own)).uses_tools


def test_a_variable_that_there_is_not_is_a_wrong_prompt(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("agent: {system_template: s, instance_template: '{{tsak}}'}\n")
    prompts = load_prompt_set(str(own))
    with pytest.raises(ConfigError, match="tsak"):
        prompts.render(prompts.instance_template, {"task": "t"})


@pytest.mark.parametrize("name", ["mini", "gold", "noop"])
def test_agents_by_name(name: str) -> None:
    section = AgentSection.model_validate({"name": name})
    agent = make_agent(section, step_timeout_s=1, time_limit_s=1)
    assert agent.name == name
    assert agent.needs_model == (name == "mini")


IMPORT = """
import os
os.environ["SECRET_BEFORE"] = "kept"
from palestra.config import AgentSection
from palestra.environment.agents import choose
import sys
assert "minisweagent" not in sys.modules, "imported before it is needed"
before = dict(os.environ)
choose.make_agent(AgentSection(), step_timeout_s=1, time_limit_s=1)
assert "minisweagent" in sys.modules
assert dict(os.environ) == before, "the environment has changed"
assert "litellm" not in sys.modules
"""


def test_importing_mini_swe_agent_leaves_no_trace(tmp_path: Path) -> None:
    home = tmp_path / "home"
    secrets = home / ".config" / "mini-swe-agent"
    secrets.mkdir(parents=True)
    (secrets / ".env").write_text("STOLEN_KEY=1\n")
    before = sorted(home.rglob("*"))
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert sorted(home.rglob("*")) == before
    assert sorted(tmp_path.iterdir()) == [home]


def test_importing_mini_swe_agent_without_a_home(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": "/proc/none", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the bridge -----------------------------------------------------------------


async def test_what_the_loop_raises_is_raised_in_the_thread() -> None:
    async def fails() -> None:
        raise KeyError("x")

    def work(bridge: LoopBridge) -> str:
        with pytest.raises(KeyError):
            bridge.call(fails)
        return threading.current_thread().name

    assert await run_in_thread(work, name="mine") == "mine"


async def test_what_the_thread_raises_is_raised_in_the_loop() -> None:
    def work(_: LoopBridge) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_in_thread(work, name="mine")


async def test_an_agent_that_swallows_exceptions_still_ends_when_cancelled() -> None:
    ended = threading.Event()
    cleaned = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    def work(bridge: LoopBridge) -> None:
        try:
            while True:
                try:
                    bridge.call(forever)
                except Exception:  # as careless code does
                    continue
        finally:
            ended.set()

    running = asyncio.create_task(run_in_thread(work, name="mine"))
    await asyncio.sleep(0.1)
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()  # a second time, while it waits for the thread
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()
    assert cleaned.is_set(), "the clean-up of the call had not ended"


async def test_cancelling_before_the_first_call_ends_it_there() -> None:
    started, go_on = threading.Event(), threading.Event()
    called = False

    async def note() -> None:
        nonlocal called
        called = True

    def work(bridge: LoopBridge) -> None:
        started.set()
        go_on.wait(10)
        bridge.call(note)

    running = asyncio.create_task(run_in_thread(work, name="mine"))
    await until(started.is_set, what="the thread runs")
    running.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not called
