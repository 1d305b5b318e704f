"""A live environment server, an engine behind SGLang's shapes, and arguments as Miles has them."""

from __future__ import annotations

import asyncio
import importlib
import warnings
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from palestra.config import EngineSection
from palestra.policy.engines.local import LocalEngine
from palestra.policy.engines.sglang_front import RunningFront
from palestra.recipe_files import parse_recipe
from palestra.run.policy import find_model
from palestra.run.serve import ServeOptions, serve_environment
from palestra.tasks.katas import KataSpec, generate_rows

MODEL = find_model("demo")
SAMPLING = {
    "temperature": 0.8,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 80,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": True,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}
"""As Miles' rollout makes them."""


def real_miles(module: str) -> Any:
    """A module of miles-rl, or skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError as error:
            pytest.skip(f"{module} cannot be imported here: {error}", allow_module_level=True)


def miles_args(front: RunningFront, environment_url: str, **more: Any) -> Namespace:
    """The arguments that Miles' rollout reads, and ours."""
    args = {
        "hf_checkpoint": str(MODEL),
        "chat_template_path": None,
        "sglang_router_ip": front.host,
        "sglang_router_port": front.port,
        "sglang_server_concurrency": 64,
        "sglang_dp_size": None,
        "rollout_num_gpus": 1,
        "rollout_num_gpus_per_engine": 1,
        "rollout_temperature": 0.8,
        "rollout_top_p": 1.0,
        "rollout_top_k": -1,
        "rollout_max_response_len": 80,
        "rollout_max_context_len": 640,
        "rollout_stop": None,
        "rollout_stop_token_ids": None,
        "rollout_skip_special_tokens": False,
        "reward_key": None,
        "use_tis": True,
        "palestra_environment_url": environment_url,
        "palestra_infra_retries": 0,
        "palestra_start_timeout_s": 0,
        "palestra_outage_s": 0,
    }
    return Namespace(**(args | more))


def kata_rows(num: int) -> list[dict[str, Any]]:
    """Rows that carry their repository."""
    return list(generate_rows(KataSpec(split="train", num_tasks=num, levels=(0,))))


@asynccontextmanager
async def environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """What ``palestra serve`` runs, in this loop; yields its URL."""
    monkeypatch.setenv("PALESTRA_STATE", str(folder / "state"))
    recipe = parse_recipe(
        {
            "sandbox": {"memory_mb": 512, "disk_mb": 64, "num_pids": 64},
            "environment": {"step_timeout_s": 30, "eval_timeout_s": 60, "episode_timeout_s": 120},
            "agent": {"prompt": "kata", "step_limit": 4, "max_format_errors": 2},
        }
    )
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve_environment(
            recipe,
            ServeOptions(host="127.0.0.1", port=0),
            on_bad_row=pytest.fail,
            on_choice=lambda _: None,
            on_ready=ready.set_result,
            stop=stop,
        )
    )
    try:
        await asyncio.wait({ready, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        yield ready.result()
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def demo_engine() -> AsyncIterator[LocalEngine]:
    """The policy that comes along, on the local engine."""
    section = EngineSection(max_batch=16, num_threads=1)
    async with LocalEngine(MODEL, section=section, max_context=640, device="cpu", version=7) as e:
        yield e


def forget_miles_state() -> None:
    """Miles holds one state for the life of a process, with the arguments of the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ImportError):
            importlib.import_module("miles.utils.misc").SingletonMeta.clear_all_instances()
