"""A recipe's engine: in this process, on servers it names, or on servers it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from palestra.config import EngineSection, ModelSection, Recipe
from palestra.config_engine import LaunchSection
from palestra.errors import ConfigError, EngineError
from palestra.events import MemoryEvents
from palestra.policy.engines.commands import launch_command, launch_environment
from palestra.policy.engines.fleet import Fleet
from palestra.policy.engines.local import LocalEngine
from palestra.records import SamplingParams
from palestra.run.engine_servers import engine_of

FAKE = (sys.executable, "-m", "palestra.policy.engines.sglang_fake", "--hashed")


def folder_of(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(name.encode())
    return folder


def recipe_of(launch: LaunchSection, **options: object) -> Recipe:
    return Recipe(engine=EngineSection(kind="sglang", launch=launch, **options))  # type: ignore[arg-type]


async def test_servers_are_started_and_given_the_weights_that_are_due(tmp_path: Path) -> None:
    start, due, new = (folder_of(tmp_path, name) for name in ("start", "due", "new"))
    events = MemoryEvents()
    said: list[str] = []
    recipe = recipe_of(LaunchSection(servers=2, command=FAKE))
    engine = engine_of(
        recipe, model=start, weights=due, version=7, logs=tmp_path, events=events, say=said.append
    )
    assert isinstance(engine, Fleet)
    async with engine:
        assert [member.version for member in engine.members] == [7, 7]
        generation = await engine.generate([1, 2, 3], SamplingParams(max_new_tokens=4))
        assert [segment.policy_version for segment in generation.segments] == [7]
        await engine.publish(new, 8)
        assert engine.version == 8
    assert len(events.of_kind("engine.up")) == 2
    assert "ready to roll" in (tmp_path / "engine-1.log").read_text()


async def test_a_wrong_argument_is_said_with_what_the_server_printed(tmp_path: Path) -> None:
    start = folder_of(tmp_path, "start")
    recipe = recipe_of(LaunchSection(command=FAKE, args=("--pace-s", "soon")))
    engine = engine_of(recipe, model=start, weights=start, version=0, logs=tmp_path)
    with pytest.raises(EngineError, match="invalid float value: 'soon'"):
        await engine.__aenter__()


def test_a_local_engine_needs_no_server(tmp_path: Path) -> None:
    engine = engine_of(Recipe(), model=tmp_path, weights=tmp_path, version=3, logs=tmp_path)
    assert isinstance(engine, LocalEngine)
    assert engine.version == 3


def test_command_lines() -> None:
    launch = LaunchSection(tensor_parallel=2, memory_share=0.5, args=("--attention-backend", "fa3"))
    section = EngineSection(kind="sglang", launch=launch)
    model = ModelSection(dtype="bfloat16", max_context=4096)
    sglang = launch_command(section, launch, model, Path("/m"), host="127.0.0.1", port=3)
    assert " ".join(sglang[1:]) == (
        "-m sglang.launch_server --model-path /m --host 127.0.0.1 --port 3 --tp-size 2 "
        "--dtype bfloat16 --mem-fraction-static 0.5 --attention-backend fa3"
    )
    section = EngineSection(kind="vllm", launch=launch)
    vllm = " ".join(launch_command(section, launch, model, Path("/m"), host="::1", port=3))
    assert "--logprobs-mode processed_logprobs" in vllm
    assert "--max-model-len 4096" in vllm
    assert "--gpu-memory-utilization 0.5" in vllm


@pytest.mark.parametrize(
    ("visible", "number", "gpus"),
    [("", 0, "1,2"), ("", 1, "3,4"), ("4,5,6,7", 0, "5,6"), ("4,5,6,7", 1, "7")],
)
def test_each_server_has_gpus_of_its_own(visible: str, number: int, gpus: str) -> None:
    launch = LaunchSection(tensor_parallel=2, first_gpu=1)
    environment = launch_environment(launch, number, {"CUDA_VISIBLE_DEVICES": visible})
    assert environment["CUDA_VISIBLE_DEVICES"] == gpus


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_vllm_is_refused_a_model_whose_embeddings_are_tied(tmp_path: Path, kind: str) -> None:
    model = folder_of(tmp_path, "tied")
    (model / "config.json").write_text('{"tie_word_embeddings": true}')
    section = EngineSection(kind=kind, urls=("http://127.0.0.1:1",))  # type: ignore[arg-type]
    recipe = Recipe(engine=section)

    def build() -> object:
        return engine_of(recipe, model=model, weights=model, version=0, logs=tmp_path)

    if kind == "sglang":
        build()
        return
    with pytest.raises(ConfigError, match="embeddings are tied"):
        build()
    (model / "config.json").write_text('{"tie_word_embeddings": false}')
    build()
