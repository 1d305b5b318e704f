"""The command lines of engine servers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from palestra.config import EngineSection, ModelSection
from palestra.config_engine import LaunchSection

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def sglang_command(
    launch: LaunchSection, model: ModelSection, folder: Path, *, host: str, port: int
) -> tuple[str, ...]:
    """Start SGLang on the model in ``folder``."""
    share = launch.memory_share
    return (
        *(launch.command or (sys.executable, "-m", "sglang.launch_server")),
        *("--model-path", str(folder), "--host", host, "--port", str(port)),
        *("--tp-size", str(launch.tensor_parallel), "--dtype", model.dtype),
        *(() if share is None else ("--mem-fraction-static", str(share))),
        *launch.args,
    )


def vllm_command(
    launch: LaunchSection, model: ModelSection, folder: Path, *, host: str, port: int
) -> tuple[str, ...]:
    """Start vLLM on the model in ``folder``."""
    share = launch.memory_share
    return (
        *(launch.command or (sys.executable, "-m", "vllm.entrypoints.openai.api_server")),
        *("--model", str(folder), "--host", host, "--port", str(port)),
        *("--tensor-parallel-size", str(launch.tensor_parallel), "--dtype", model.dtype),
        *("--max-model-len", str(model.max_context)),
        # Raw logprobs are those of temperature 1, whatever was sampled at.
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
        "--enable-scale-out",  # ids in and ids out
        *(() if share is None else ("--gpu-memory-utilization", str(share))),
        *launch.args,
    )


def launch_command(
    section: EngineSection,
    launch: LaunchSection,
    model: ModelSection,
    folder: Path,
    *,
    host: str,
    port: int,
) -> tuple[str, ...]:
    """Start a server of the section's kind on the model in ``folder``."""
    command = sglang_command if section.kind == "sglang" else vllm_command
    return command(launch, model, folder, host=host, port=port)


def launch_environment(
    launch: LaunchSection, number: int, environment: Mapping[str, str]
) -> dict[str, str]:
    """Variables for the server ``number``, from 0: which GPUs are its own, and vLLM's mode.

    Args:
        launch: how many GPUs each takes, and from which on.
        number: of the server.
        environment: of this process, which may see only some of the machine's GPUs.
    """
    first = launch.first_gpu + number * launch.tensor_parallel
    wanted = range(first, first + launch.tensor_parallel)
    visible = environment.get(_VISIBLE, "")
    seen = [name.strip() for name in visible.split(",") if name.strip()]
    names = [seen[i] for i in wanted if i < len(seen)] if seen else map(str, wanted)
    # vLLM has its endpoints for new weights in this mode only.
    return {_VISIBLE: ",".join(names), "VLLM_SERVER_DEV_MODE": "1"}
