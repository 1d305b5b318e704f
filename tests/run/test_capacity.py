from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen3Config
from typer.testing import CliRunner

from palestra.cli.main import app
from palestra.config import Recipe
from palestra.errors import ConfigError
from palestra.learning.training.memory import GIB, ModelShape
from palestra.learning.training.shape import model_shape
from palestra.recipe_files import parse_recipe
from palestra.run import fitting
from palestra.run.capacity import Machine, longest_row, plan_capacity
from palestra.run.fitting import check_capacity, free_host_bytes, require_fit, suitable_shape

H100 = Machine(gpu_bytes=80 * GIB, free_bytes=80 * GIB, host_bytes=100 * GIB)


@pytest.fixture(scope="session")
def qwen3_4b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3-4b")
    Qwen3Config(
        vocab_size=151_936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shape(qwen3_4b: Path) -> ModelShape:
    return model_shape(qwen3_4b)


def recipe_of(folder: Path, **sections: dict[str, Any]) -> Recipe:
    launched = {"kind": "sglang", "launch": {"memory_share": 0.6, "first_gpu": 1}}
    data = {
        "model": {"path": str(folder), "dtype": "bfloat16", "max_context": 16384},
        "engine": launched,
        "training": {"layout": "packed", "activation_checkpointing": True},
    }
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return parse_recipe(data)


# --- what engines take ----------------------------------------------------------


@pytest.mark.parametrize(
    ("launch", "device", "gib"),
    [
        ({"memory_share": 0.3}, "auto", [26]),  # 24, and 2 beside its share
        ({"memory_share": 0.3, "first_gpu": 1}, "auto", []),
        ({"memory_share": 0.3, "first_gpu": 1}, "cuda:1", [26]),
        ({"memory_share": 0.3, "servers": 2}, "cuda:1", [26]),
        ({"memory_share": 0.3, "tensor_parallel": 2}, "cuda:1", [26]),
        ({}, "cuda", [74]),
    ],
    ids=["same", "other", "named", "second-server", "both-gpus", "own-default"],
)
def test_engines_count_on_the_trainers_gpu_only(
    qwen3_4b: Path, shape: ModelShape, launch: dict[str, Any], device: str, gib: list[int]
) -> None:
    engine = {"kind": "sglang", "launch": launch}
    recipe = recipe_of(qwen3_4b, engine=engine, model={"device": device})
    plan = plan_capacity(recipe, shape, H100)
    assert [round(engine.num_bytes / GIB) for engine in plan.engines] == gib
    assert plan.needed_bytes == plan.trainer.gpu_bytes + sum(e.num_bytes for e in plan.engines)


def test_a_local_engine_has_weights_and_a_conversation(qwen3_4b: Path, shape: ModelShape) -> None:
    recipe = recipe_of(qwen3_4b, engine={"kind": "local", "launch": None})
    weights, conversation = plan_capacity(recipe, shape, H100).engines
    assert weights.num_bytes == 2 * 4_022_468_096
    # Keys and values of 8 heads of 128, in 36 layers, 2 bytes each.
    assert conversation.num_bytes == 16384 * 2 * 1024 * 36 * 2


def test_an_engine_needs_room_for_weights_and_one_conversation(
    qwen3_4b: Path, shape: ModelShape
) -> None:
    launch = {"kind": "sglang", "launch": {"memory_share": 0.1, "first_gpu": 1}}
    plan = plan_capacity(recipe_of(qwen3_4b, engine=launch), shape, H100)
    (trouble,) = [t for t in plan.troubles if "memory_share" in t]
    # 7.5 GiB of weights and a seventh more, and 2.25 GiB of keys and values.
    assert "leaves an engine 8.0 GiB" in trouble
    assert "need 10.9 GiB" in trouble


# --- refusing, and what mends it ------------------------------------------------


def hint_of(recipe: Recipe, shape: ModelShape, machine: Machine) -> str:
    with pytest.raises(ConfigError) as raised:
        require_fit(plan_capacity(recipe, shape, machine), recipe, shape)
    return str(raised.value.hint)


def test_4b_with_all_state_does_not_fit_80_gib_and_offloading_mends_it(
    qwen3_4b: Path, shape: ModelShape
) -> None:
    recipe = recipe_of(qwen3_4b, training={"microbatch_tokens": 32768, "kl_coef": 0.01})
    # Shorter microbatches alone are not enough: state takes 75 GiB.
    assert hint_of(recipe, shape, H100).startswith("--set training.offload_optimizer=true (then")
    larger = Machine(gpu_bytes=140 * GIB, free_bytes=140 * GIB)
    require_fit(plan_capacity(recipe, shape, larger), recipe, shape)


def test_what_needs_least_change_is_proposed(qwen3_4b: Path, shape: ModelShape) -> None:
    recipe = recipe_of(
        qwen3_4b, training={"activation_checkpointing": False, "offload_optimizer": True}
    )
    hint = hint_of(recipe, shape, H100)
    assert hint.startswith("--set training.activation_checkpointing=true (then")
    little_host = Machine(gpu_bytes=80 * GIB, free_bytes=80 * GIB, host_bytes=20 * GIB)
    offloaded = recipe_of(qwen3_4b, training={"offload_optimizer": True})
    assert hint_of(offloaded, shape, little_host).startswith("--set training.lora=true (then")


def test_several_changes_are_proposed_together(qwen3_4b: Path, shape: ModelShape) -> None:
    recipe = recipe_of(
        qwen3_4b,
        model={"dtype": "float32"},
        training={"activation_checkpointing": False},
    )
    hint = hint_of(recipe, shape, Machine(gpu_bytes=40 * GIB, free_bytes=40 * GIB))
    assert hint.startswith(
        "--set model.dtype=bfloat16 --set training.activation_checkpointing=true "
    )
    assert "offload_optimizer=true" in hint


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_another_share_for_the_engine_is_proposed(
    qwen3_4b: Path, shape: ModelShape, share: float
) -> None:
    recipe = recipe_of(
        qwen3_4b,
        engine={"kind": "sglang", "launch": {"memory_share": share}},
        training={"offload_optimizer": True},
    )
    hint = hint_of(recipe, shape, H100)
    # An eighth and some of 80 GiB hold 10.9, in twentieths.
    assert hint.startswith("--set engine.launch.memory_share=0.15 (then"), hint


def test_where_nothing_helps_it_is_said(qwen3_4b: Path, shape: ModelShape) -> None:
    tiny = Machine(gpu_bytes=8 * GIB, free_bytes=8 * GIB)
    recipe = recipe_of(qwen3_4b)
    assert "no setting makes it fit" in hint_of(recipe, shape, tiny)


def test_the_longest_row_is_what_is_trained_on(qwen3_4b: Path) -> None:
    assert longest_row(recipe_of(qwen3_4b)) == 16384
    assert longest_row(recipe_of(qwen3_4b, rollouts={"max_row_tokens": 9000})) == 9000
    assert longest_row(recipe_of(qwen3_4b, rollouts={"max_row_tokens": 90000})) == 16384


# --- the start of a run ---------------------------------------------------------


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(
        fitting, "machine_of", lambda device: Machine(gpu_bytes=24 * GIB, free_bytes=20 * GIB)
    )


@pytest.mark.usefixtures("small_gpu")
def test_a_run_that_cannot_fit_does_not_begin(qwen3_4b: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"GPU memory are needed .* and 20\.0 GiB are free"):
        check_capacity(recipe_of(qwen3_4b), said.append)
    check_capacity(recipe_of(qwen3_4b, training={"memory_check": "warn"}), said.append)
    assert said[0].startswith("it will likely not fit: about ")
    check_capacity(parse_recipe({}), said.append)  # a tiny model
    assert len(said) == 1


@pytest.mark.usefixtures("small_gpu")
def test_a_run_that_fits_says_so(qwen3_4b: Path) -> None:
    said: list[str] = []
    training = {"lora": True, "microbatch_tokens": 2048}
    recipe = recipe_of(qwen3_4b, training=training, model={"max_context": 4096})
    check_capacity(recipe, said.append)
    assert len(said) == 1
    assert said[0].endswith("of 20.0 GiB of free GPU memory will be needed")


def test_a_cpu_run_is_not_checked(tmp_path: Path) -> None:
    check_capacity(parse_recipe({"model": {"path": "demo", "device": "cpu"}}), pytest.fail)


def test_what_engine_or_adapters_do_not_take_is_refused_beforehand(qwen3_4b: Path) -> None:
    with pytest.raises(ConfigError, match=r"c_attn .*; there are down_proj, gate_proj"):
        suitable_shape(recipe_of(qwen3_4b, training={"lora": {"targets": ["c_attn"]}}))
    with pytest.raises(ConfigError, match="tied"):
        suitable_shape(recipe_of(qwen3_4b, engine={"kind": "vllm", "launch": {}}))


def test_the_hosts_free_memory_is_known() -> None:
    free = free_host_bytes()
    assert free is not None
    assert 0 < free < 1 << 50


# --- the command line -----------------------------------------------------------


def dry_run(tmp_path: Path, recipe: Recipe, *options: str) -> Any:
    path = tmp_path / "recipe.toml"
    lines = [
        f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
        for name, values in recipe.model_dump(mode="json", exclude_defaults=True).items()
        if isinstance(values, dict) and name != "engine"
    ]
    path.write_text("\n".join(lines))
    return CliRunner().invoke(app, ["train", str(path), "--dry-run", *options])


def test_dry_run_shows_every_part_and_starts_nothing(
    qwen3_4b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(qwen3_4b, training={"offload_optimizer": True})
    shown = dry_run(tmp_path, recipe, "--gpu-gib", "80")
    assert shown.exit_code == 0, shown.output
    for part in ("weights", "gradients of a pass", "activations of a pass", "free on the GPU"):
        assert part in shown.stdout
    assert "moments of AdamW" in shown.stdout.partition("\nhost\n")[2]
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.toml"}


def test_dry_run_fails_where_it_does_not_fit(qwen3_4b: Path, tmp_path: Path) -> None:
    shown = dry_run(tmp_path, recipe_of(qwen3_4b), "--gpu-gib", "40")
    assert "needed of the GPU" in shown.stdout
    assert isinstance(shown.exception, ConfigError)
    assert shown.exception.hint
    assert shown.exception.hint.startswith("--set training.offload_optimizer=true (then")


def test_dry_run_without_a_gpu_compares_with_none(qwen3_4b: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    shown = dry_run(tmp_path, recipe_of(qwen3_4b))
    assert shown.exit_code == 0, shown.output
    assert "free on the GPU" not in shown.stdout
    assert "--gpu-gib N" in shown.stderr


def test_a_smaller_model_needs_less(tmp_path: Path, shape: ModelShape) -> None:
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    recipe = recipe_of(tmp_path)
    small = plan_capacity(recipe, model_shape(tmp_path), H100)
    assert small.needed_bytes < plan_capacity(recipe, shape, H100).needed_bytes / 2
    assert not small.troubles
