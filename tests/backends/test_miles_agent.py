"""The hook for a Miles with a session server of its own, and how a renderer is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from miles_parts import MODEL, demo_engine, environment, kata_rows, real_miles

from palestra.backends.miles.rendering import find_renderer
from palestra.policy.gateway import Gateway, SessionLimits, running_gateway
from palestra.policy.rendering import ChatMLRenderer, load_renderer
from palestra.run.policy import load_tokenizer

hooks = real_miles("palestra.backends.miles")
Sample = real_miles("miles.utils.types").Sample

SESSION = {"session_server_id": "h:1", "session_server_instance_id": "i", "max_seq_len": 640}


async def test_an_episode_on_a_session_of_miles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(MODEL)
    row = kata_rows(1)[0]
    async with (
        demo_engine() as engine,
        environment(tmp_path, monkeypatch) as url,
    ):
        # Any endpoint that keeps its tokens per session will do; ours is one.
        gateway = Gateway(engine, load_renderer("chatml", tokenizer), tokenizer, model_name="p")
        async with running_gateway(gateway) as root:
            monkeypatch.setenv("SWE_AGENT_GYM_URL", url)
            session = gateway.ledger.open(SessionLimits())
            result = await hooks.agent(
                base_url=f"{root}/s/{session.session_id}",
                prompt=row["problem_statement"],
                request_kwargs={"temperature": 0.8, "max_tokens": 60, "logprobs": True},
                metadata={**row, **SESSION},
                anything_new=1,
            )
            turns = session.trace.turns
    assert result["outcome"] in ("solved", "unsolved", "malformed", "truncated")
    assert result["reward"] in (0.0, 1.0)
    assert result["agent_metrics"]["turns"] == len(turns)
    assert all(len(turn.sampled_ids) <= 60 for turn in turns)
    assert {turn.temperature for turn in turns} == {0.8}
    sample = Sample(metadata={**row, **result})
    assert await hooks.reward_func(None, sample) == result["reward"]


async def test_an_infra_error_has_no_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = kata_rows(1)[0]
    async with environment(tmp_path, monkeypatch) as url:
        monkeypatch.setenv("SWE_AGENT_GYM_URL", url)
        nobody = await hooks.agent("http://127.0.0.1:9", "", {}, row)
        assert nobody["reward"] is None
        assert nobody["outcome"] == "infra_error"
        assert nobody["exit_status"] == "ModelUnavailable"


def test_the_renderer_is_the_one_that_writes_as_the_template() -> None:
    tokenizer: Any = load_tokenizer(MODEL)
    assert isinstance(find_renderer(tokenizer, model_type="qwen2"), ChatMLRenderer)
    assert isinstance(find_renderer(tokenizer, model_type=None), ChatMLRenderer)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert find_renderer(tokenizer, model_type="qwen2") is None
    tokenizer.chat_template = None
    assert find_renderer(tokenizer, model_type="qwen2") is None
