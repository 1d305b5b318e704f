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
    return sglang_command(launch, model, folder, host=host, port=port)


def launch_environment(
    launch: LaunchSection, number: int, environment: Mapping[str, str]
) -> dict[str, str]:
    """Variables for the server ``number``, from 0: which GPUs are its own.

    Args:
        launch: how many GPUs each takes, and from which on.
        number: of the server.
        environment: of this process, which may see only some of the machine's GPUs.
    """
    first = launch.first_gpu + number * launch.tensor_parallel
    wanted = range(first, first + launch.tensor_parallel)
    visible = environment.get(_VISIBLE, "")
    if not visible.strip():
        return {_VISIBLE: ",".join(map(str, wanted))}
    seen = [name.strip() for name in visible.split(",")]
    return {_VISIBLE: ",".join(seen[i] for i in wanted if i < len(seen))}
