"""A whole step and an evaluation through Miles' own rollout code and data buffer."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from miles_parts import (
    demo_engine,
    environment,
    forget_miles_state,
    kata_rows,
    miles_args,
    real_miles,
)

from palestra.errors import ConfigError
from palestra.policy.engines.sglang_front import RunningFront, running_front
from palestra.tasks.miles import to_prompt_data

rollout = real_miles("miles.rollout.sglang_rollout")
data_source = real_miles("miles.rollout.data_source")
run = real_miles("miles.utils.async_utils").run
Sample = real_miles("miles.utils.types").Sample
hooks = real_miles("palestra.backends.miles")
rolling = real_miles("palestra.backends.miles.rolling")
service = real_miles("palestra.backends.miles.service")

HOOKS = {
    "custom_generate_function_path": "palestra.backends.miles.generate",
    "custom_rm_path": "palestra.backends.miles.reward_func",
    "dynamic_sampling_filter_path": "palestra.backends.miles.dynamic_filter",
}


def step_args(front: RunningFront, url: str, prompt_data: Path, **more: Any) -> Namespace:
    """What Miles' rollout and data source read besides."""
    known = {
        "rollout_global_dataset": True,
        "rollout_batch_size": 2,
        "over_sampling_batch_size": 2,
        "n_samples_per_prompt": 4,
        "prompt_data": str(prompt_data),
        "input_key": "prompt",
        "label_key": None,
        "metadata_key": "metadata",
        "tool_key": None,
        "multimodal_keys": None,
        "apply_chat_template": False,
        "apply_chat_template_kwargs": None,
        "rollout_max_prompt_len": None,
        "rollout_seed": 1,
        "rollout_shuffle": True,
        "dump_details": None,
        "buffer_filter_path": None,
        "partial_rollout": False,
        "mask_offpolicy_in_partial_rollout": False,
        "group_rm": False,
        "rm_type": None,
        "sglang_router_policy": None,
        "use_miles_router": False,
        "rollout_sample_filter_path": None,
        "rollout_all_samples_process_path": None,
        "recompute_logprobs_via_prefill": False,
        "dumper_enable": False,
        "dumper_inference": None,
        "eval_datasets": [],
        "eval_max_prompt_len": None,
        "eval_reward_key": None,
    }
    return miles_args(front, url, **(known | HOOKS | more))


@asynccontextmanager
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    async with (
        demo_engine() as engine,
        environment(tmp_path, monkeypatch) as url,
        running_front(engine) as front,
    ):
        http = real_miles("miles.utils.http_utils")
        prompt_data = tmp_path / "train.jsonl"
        rows = kata_rows(8)
        prompt_data.write_text("".join(json.dumps(to_prompt_data(row)) + "\n" for row in rows))

        def make(**more: Any) -> Namespace:
            args = step_args(front, url, prompt_data, **more)
            args.use_distributed_post = False
            http.init_http_client(args)
            return args

        try:
            yield SimpleNamespace(args=make, front=front.front, prompt_data=prompt_data)
        finally:
            await asyncio.to_thread(run, service.close_service())
            forget_miles_state()


async def in_thread(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """As Miles' Ray actor calls it: blocking, beside Miles' own loop."""
    return await asyncio.to_thread(function, *args, **more)


async def test_a_step_through_miles_own_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as w:
        args = w.args()
        buffer = data_source.RolloutDataSourceWithBuffer(args)
        output = await in_thread(hooks.generate_rollout, args, 0, buffer)
    assert len(output.samples) == 2
    for group in output.samples:
        assert len(group) == 4
        assert {sample.reward for sample in group} == {0.0, 1.0}
        for sample in group:
            sample.validate()
            assert isinstance(sample, Sample)
            assert sum(sample.loss_mask) > 0
    assert output.metrics["agent/turns_mean"] >= 1
    assert output.metrics["agent/untrained_ids_sum"] == 0


async def test_an_evaluation_leaves_out_what_the_infrastructure_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_config = real_miles("miles.utils.eval_config")
    async with world(tmp_path, monkeypatch) as w:
        lines = [json.loads(line) for line in w.prompt_data.read_text().splitlines()[:3]]
        script = lines[1]["metadata"]["eval_script"]
        lines[1]["metadata"]["eval_script"] = "exit 3\n" + script
        held_out = tmp_path / "heldout.jsonl"
        held_out.write_text("".join(json.dumps(line) + "\n" for line in lines))
        dataset = eval_config.EvalDatasetConfig(name="katas", path=str(held_out))
        dataset.input_key, dataset.metadata_key = "prompt", "metadata"
        dataset.temperature, dataset.top_p, dataset.top_k = 0.8, 1.0, -1
        dataset.max_response_len, dataset.n_samples_per_eval_prompt = 80, 2
        args = w.args(eval_datasets=[dataset])
        output = await in_thread(hooks.generate_rollout, args, 0, None, evaluation=True)
    results = output.data["katas"]
    assert len(results["rewards"]) == len(results["samples"]) == 4
    assert all(reward in (0.0, 1.0) for reward in results["rewards"])
    assert output.metrics["eval/katas/aborted"] == 2
    assert "eval/katas/agent/turns_mean" in output.metrics


async def test_aborted_samples_that_nothing_filters_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as w:
        broken = [json.loads(line) for line in w.prompt_data.read_text().splitlines()]
        for line in broken:
            line["metadata"]["eval_script"] = "exit 3\n" + line["metadata"]["eval_script"]
        w.prompt_data.write_text("".join(json.dumps(line) + "\n" for line in broken))
        args = w.args(dynamic_sampling_filter_path=None)
        buffer = data_source.RolloutDataSourceWithBuffer(args)
        with pytest.raises(ConfigError, match="dynamic-sampling-filter-path"):
            await in_thread(hooks.generate_rollout, args, 0, buffer)
